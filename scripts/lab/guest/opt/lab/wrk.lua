-- A visitor of the pages that make-data.py wrote: a few popular ones, the others seldom.
local pages = 1200
request = function()
  local n = math.floor(pages * math.random() ^ 3)
  return wrk.format('GET', '/p/' .. n .. '.html')
end
