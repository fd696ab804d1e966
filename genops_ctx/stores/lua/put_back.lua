-- Reservations of calls in flight that data begun anew may not know, whatever the limits say: they were admitted.
-- ARGV 7 number, then for each: id, amount, expires_at, keyed, memo, token, n, n accounts
local at = 8
for _ = 1, tonumber(ARGV[7]) do
  local id, further = ARGV[at], tonumber(ARGV[at + 6])
  if not find(id) then
    local amount, nanos = parse(ARGV[at + 1])
    local hold = {
      "held", amount, nanos, 0, 0, tonumber(ARGV[at + 2]) + ahead, tonumber(ARGV[at + 3]), 0, ARGV[at + 4], ARGV[at + 5],
      unpack(ARGV, at + 7, at + 6 + further)
    }
    book(hold, 0, 0, amount, nanos)
    keep(id, hold)
  end
  at = at + 7 + further
end
return changed()
