-- ARGV 7 … ids of losses that the ledger has
for index = 7, #ARGV do
  redis.call("HDEL", LOSSES, ARGV[index])
end
return changed()
