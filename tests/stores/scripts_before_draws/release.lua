-- ARGV 7 id, 8 seconds that a named end is remembered, 9 token of the reserve that made it, or ""
local id = ARGV[7]
local hold = find(id)
if not hold or (ARGV[9] ~= "" and hold[TOKEN] ~= ARGV[9]) then
  return answer(0)
end
if hold[STATE] ~= "held" and hold[STATE] ~= "lost" then
  return answer(hold[STATE] == "released" and 1 or 0)
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
return changed(1)
