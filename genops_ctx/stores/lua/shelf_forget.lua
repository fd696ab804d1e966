-- ARGV 4 "delete", "release" (5 token), "clear" or "size"
if ARGV[4] == "delete" then
  drop_lease(ARGV[3])
  drop(ARGV[3])
  return answer()
elseif ARGV[4] == "release" then
  if lease_of(ARGV[3]) == ARGV[5] then
    drop_lease(ARGV[3])
  end
  return answer()
elseif ARGV[4] == "clear" then
  redis.call("DEL", VALUES, USED, ENDS, LEASES)
  return answer()
end
local more = sweep()
return answer(redis.call("HLEN", VALUES), more and 1 or 0)
