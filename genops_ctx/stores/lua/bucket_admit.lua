-- ARGV 4 and 5 step of the request and its rest, 6 and 7 of the burst, 8 patience. Answers 1 or 0, wait, now, base, begun, given
settle()
local full = not tat or tat < now
local base, rest = now, 0
if not full then
  base, rest = tat, part
end
local ahead = base + tonumber(ARGV[4])
rest = rest + tonumber(ARGV[5])
if rest >= limit then
  ahead, rest = ahead + 1, rest - limit
end
local wait = ahead - tonumber(ARGV[6]) - now
if rest > tonumber(ARGV[7]) then
  wait = wait + 1
end
wait = math.max(wait, 0)
if wait > tonumber(ARGV[8]) then
  if dirty then
    keep()
  end
  return answer(0, wait)
end
if full then
  last, begun, given = now, now, 0
end
tat, part, last = ahead, rest, math.max(last, now)
keep()
return answer(1, wait, now, base, begun, given)
