-- ARGV 6 "all", or "these", then names. Answers names and values by turns, or values alone.
if ARGV[6] == "all" then
  return answer(redis.call("HGETALL", ACCOUNTS))
end
local values = {}
for index = 7, #ARGV do
  values[index - 6] = redis.call("HGET", ACCOUNTS, ARGV[index]) or "0 0"
end
return answer(values)
