-- ARGV 6 … ids of losses that the ledger has
for index = 6, #ARGV do
  redis.call("HDEL", LOSSES, ARGV[index])
end
return changed()
