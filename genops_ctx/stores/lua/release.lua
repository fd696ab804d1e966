-- ARGV 7 id, 8 seconds that a named end is remembered
local id = ARGV[7]
local hold = find(id)
if not hold or (hold[STATE] ~= "held" and hold[STATE] ~= "lost") then
  return answer()
end
if hold[STATE] == "held" then
  book(hold, -hold[BOOKED], -hold[BOOKED + 1], -hold[AMOUNT], -hold[AMOUNT + 1])
else
  book(hold, -hold[BOOKED], -hold[BOOKED + 1], 0, 0)
  redis.call("HDEL", LOSSES, id)
end
if hold[KEYED] == 1 then
  hold[STATE], hold[BOOKED], hold[BOOKED + 1], hold[MEMO] = "released", 0, 0, ""
  hold[FORGET_AT] = math.max(now + tonumber(ARGV[8]), hold[FORGET_AT])
  keep(id, hold)
else
  drop(id)
end
return changed()
