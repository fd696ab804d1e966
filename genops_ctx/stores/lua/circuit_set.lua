-- ARGV 6 "closed", "forced", or "" to look
if ARGV[6] ~= "" then
  become(ARGV[6] == "closed" and "closed" or "open", ARGV[6] == "forced" and 1 or nil)
  if ARGV[6] == "closed" then
    circuit[FORCED], circuit[LAST_FAILURE] = 0, 0
  end
  keep()
end
return answer(circuit)
