-- ARGV 4 and 5 step of the request and its rest, 6 when it came
if tat and kept_limit == limit then
  local step = tonumber(ARGV[4])
  local late = math.max(last - tonumber(ARGV[6]), 0)
  if late <= step then
    tat, part = tat - step + late, part - tonumber(ARGV[5])
    if part < 0 then
      tat, part = tat - 1, part + limit
    end
    keep()
  end
end
return answer()
