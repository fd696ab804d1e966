-- ARGV 7 account: what it has spent becomes nothing. Answers how much that was.
local account = read_account(redis.call("HGET", ACCOUNTS, ARGV[7]))
local spent, spent_nanos = account[1], account[2]
if spent == 0 and spent_nanos == 0 then
  return answer("0")
end
account[1], account[2] = 0, 0
redis.call("HSET", ACCOUNTS, ARGV[7], write_account(account))
return changed(show(spent, spent_nanos))
