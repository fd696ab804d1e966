-- ARGV 7 key, 8 "frozen granted granted_until"
redis.call("HSET", CONTROLS, ARGV[7], ARGV[8])
return changed()
