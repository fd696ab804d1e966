-- ARGV 7 key
return answer(redis.call("HGET", CONTROLS, ARGV[7]))
