-- KEYS 1 index. ARGV 3 how long those are kept that are not forced
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", string.format("(%.0f", now - tonumber(ARGV[3])))
return answer(redis.call("ZRANGE", KEYS[1], 0, -1))
