-- ARGV 7 key, 8 until
local key = ARGV[7]
local there = redis.call("HGET", MARKS, key)
if there and (there == "" or tonumber(there) > now) then
  return answer(0)
end
redis.call("HSET", MARKS, key, ARGV[8])
redis.call("ZADD", SWEEP, ARGV[8], "mark " .. key)
return changed(1)
