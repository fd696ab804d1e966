-- ARGV 6 key, 7 "frozen granted granted_until"
redis.call("HSET", CONTROLS, ARGV[6], ARGV[7])
return changed()
