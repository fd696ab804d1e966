-- ARGV 7 number of accounts, then their names, then names of controls. Answers the values of both.
local last = 7 + tonumber(ARGV[7])
local accounts, controls = {}, {}
for index = 8, last do
  accounts[index - 7] = redis.call("HGET", ACCOUNTS, ARGV[index]) or "0 0"
end
for index = last + 1, #ARGV do
  controls[index - last] = redis.call("HGET", CONTROLS, ARGV[index])
end
return answer(accounts, controls)
