-- ARGV 6 key
return answer(redis.call("HGET", CONTROLS, ARGV[6]))
