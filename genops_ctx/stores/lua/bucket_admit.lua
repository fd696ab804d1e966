-- ARGV 4 and 5 step of the request and its rest, 6 and 7 of the burst, 8 patience. Answers 1 or 0, wait, now
settle()
local ahead, rest = now, 0
if tat and tat >= now then
  ahead, rest = tat, part
end
ahead, rest = ahead + tonumber(ARGV[4]), rest + tonumber(ARGV[5])
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
  return answer(0, wait, now)
end
tat, part, last = ahead, rest, math.max(last or now, now)
keep()
return answer(1, wait, now)
