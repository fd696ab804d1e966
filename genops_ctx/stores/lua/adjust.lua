-- ARGV 7 account, 8 what to add to its spent
local account = read_account(redis.call("HGET", ACCOUNTS, ARGV[7]))
local dollars, nanos = parse(ARGV[8])
account[1], account[2] = tidy(account[1] + dollars, account[2] + nanos)
redis.call("HSET", ACCOUNTS, ARGV[7], write_account(account))
return changed()
