-- ARGV 4 value, 5 time to live, 6 most entries, 7 token or ""
local key = ARGV[3]
if ARGV[7] ~= "" then
  if lease_of(key) ~= ARGV[7] then
    return answer(0)
  end
  drop_lease(key)
end
redis.call("HSET", VALUES, key, ARGV[4])
redis.call("ZADD", USED, redis.call("HINCRBY", COUNTERS, "used", 1), key)
redis.call("ZADD", ENDS, number(now + tonumber(ARGV[5])), "E" .. key)
sweep()
local most = tonumber(ARGV[6])
local many = redis.call("ZCARD", USED) - most
if many > 0 then
  for _, oldest in ipairs(redis.call("ZRANGE", USED, 0, math.min(many, SWEPT_AT_ONCE) - 1)) do
    drop(oldest)
  end
end
live(tonumber(ARGV[5]))
return answer(1)
