local value, ends = find(ARGV[3])
if value then
  return answer(value, ends)
end
return answer()
