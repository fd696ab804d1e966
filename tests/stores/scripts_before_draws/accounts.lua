-- ARGV 7 "all", or "these", then names. Answers names and values by turns, or values alone.
if ARGV[7] == "all" then
  return answer(redis.call("HGETALL", ACCOUNTS))
end
local values = {}
for index = 8, #ARGV do
  values[index - 7] = redis.call("HGET", ACCOUNTS, ARGV[index]) or "0 0"
end
return answer(values)
