-- ARGV 7 how many of a kind at most, 8 seconds that a loss is remembered
local most = tonumber(ARGV[7])
local upto = string.format("%.17g", now)
local due = redis.call("ZRANGEBYSCORE", DUE, "-inf", upto, "LIMIT", 0, most)
for _, id in ipairs(due) do
  local hold = find(id)
  if not hold then
    redis.call("ZREM", DUE, id)
  elseif hold[STATE] ~= "held" then
    drop(id)
  elseif hold[EXPIRES_AT] <= now then
    local amount, nanos = hold[AMOUNT], hold[AMOUNT + 1]
    book(hold, amount, nanos, -amount, -nanos)
    redis.call("HSET", LOSSES, id, cmsgpack.pack(hold))
    hold[STATE], hold[BOOKED], hold[BOOKED + 1], hold[MEMO] = "lost", amount, nanos, ""
    hold[FORGET_AT] = now + tonumber(ARGV[8])
    keep(id, hold)
  end
end
local gone = redis.call("ZRANGEBYSCORE", SWEEP, "-inf", upto, "LIMIT", 0, most)
for _, member in ipairs(gone) do
  local kind, name = member:match("^(%a+) (.*)$")
  if kind == "account" and (redis.call("HGET", ACCOUNTS, name) or "0 0"):sub(-2) ~= " 0" then
    -- A call that began in the window is still in flight.
    redis.call("ZADD", SWEEP, string.format("%.17g", now + tonumber(ARGV[8])), member)
  else
    redis.call("HDEL", kind == "account" and ACCOUNTS or MARKS, name)
    redis.call("ZREM", SWEEP, member)
  end
end
local losses = {}
local kept = redis.call("HGETALL", LOSSES)
for index = 1, #kept, 2 do
  if kept[index] ~= "" then
    local hold = unpacked(kept[index + 1])
    losses[#losses + 1] = {
      kept[index], show(hold[AMOUNT], hold[AMOUNT + 1]), string.format("%.17g", hold[EXPIRES_AT]), hold[MEMO],
      {unpack(hold, FIRST)},
    }
  end
end
local more = (#due == most or #gone == most) and 1 or 0
if #due + #gone == 0 then
  return answer(more, losses)
end
return changed(more, losses)
