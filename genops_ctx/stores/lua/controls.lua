-- ARGV 7 "all", or "these", then keys. Answers keys and values by turns, or values alone.
if ARGV[7] == "all" then
  return answer(redis.call("HGETALL", CONTROLS))
end
local values = {}
for index = 8, #ARGV do
  values[index - 7] = redis.call("HGET", CONTROLS, ARGV[index]) or ""
end
return answer(values)
