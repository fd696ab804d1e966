-- ARGV 7 id, 8 actual, 9 completed, 10 seconds that its end is remembered, then pinned accounts
local id = ARGV[7]
local actual, actual_nanos = parse(ARGV[8])
local hold = find(id) or {"held", 0, 0, 0, 0, 0, 0, 0, "", "", unpack(ARGV, 11)}
local freed, freed_nanos = 0, 0
if hold[STATE] == "held" then
  freed, freed_nanos = hold[AMOUNT], hold[AMOUNT + 1]
end
book(hold, actual - hold[BOOKED], actual_nanos - hold[BOOKED + 1], -freed, -freed_nanos)
hold[STATE] = ARGV[9] == "1" and "settled" or "failed"
hold[BOOKED], hold[BOOKED + 1] = actual, actual_nanos
-- One that is corrected is remembered from its correction on.
hold[FORGET_AT] = math.max(now + tonumber(ARGV[10]), hold[FORGET_AT])
hold[MEMO] = ""
keep(id, hold)
return changed()
