"""What Redis does in one step: the scripts, and how they find what they compare in a session's value.

The keys of one call may lie anywhere on a single server; in Redis Cluster every key gets a call of its own. Arguments
that all keys share come first. Only the first bytes of a value are looked at (``redis_value.py`` has the layout), so a
script costs little more than the write. Looking must not fail, as for a key of another type, which is none of ours:
what a script has written before it fails stays. What makes room runs also where there is none left.
"""

# Each of KEYS is created with a value and a time to live of ARGV, unless one of them exists: then none is. 1 or 0.
CREATE = """
local made = {}
local new = redis.call('EXISTS', unpack(KEYS)) == 0
for i = 1, #KEYS do
  if new then redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[2 * i]) end
  made[i] = new and 1 or 0
end
return made
"""

# Compare and set: ARGV holds for each key the mark that its value has to begin with, the next value, its time to live.
# 1 for each that was kept, 0 for each that was not.
COMMIT = """
local kept = {}
for i = 1, #KEYS do
  if redis.pcall('GETRANGE', KEYS[i], 0, 8) == ARGV[3 * i - 2] then
    redis.call('SET', KEYS[i], ARGV[3 * i - 1], 'PX', ARGV[3 * i])
    kept[i] = 1
  else
    kept[i] = 0
  end
end
return kept
"""

# A session becomes the memory of its end. ARGV: the reason, the time, the same as bytes, and '1' to end only what has
# expired by then. Told for each key: the head of the session that was ended; '+' and the time that it was put off to;
# 'E' where it had ended; '' where there is none, or none whose time can be read.
END = """#!lua flags=allow-oom
local told = {}
for i = 1, #KEYS do
  local head = redis.pcall('GETRANGE', KEYS[i], 0, 4095)
  if type(head) ~= 'string' then head = '' end
  local kind, whole = string.sub(head, 1, 1), string.len(head) >= 29
  local expires = whole and struct.unpack('>d', string.sub(head, 18, 25))
  told[i] = kind == 'E' and 'E' or ''
  if ARGV[4] == '1' and kind == 'S' and whole and expires > tonumber(ARGV[2]) then
    told[i] = '+' .. string.sub(head, 18, 25)
  elseif head ~= '' and kind ~= 'E' and (ARGV[4] ~= '1' or (kind == 'S' and whole)) then
    local length = whole and struct.unpack('>H', string.sub(head, 26, 27)) or 0
    local owned = whole and string.sub(head, 30, 29 + length) or ''
    redis.call('SET', KEYS[i], 'E' .. ARGV[3] .. struct.pack('>H', string.len(owned)) .. owned .. ARGV[1])
    told[i] = head
  end
end
return told
"""

# Drop each key whose value begins with the mark that ARGV holds for it: 1 for each that was, else 0.
DROP = """#!lua flags=allow-oom
local dropped = {}
for i = 1, #KEYS do
  dropped[i] = 0
  if redis.pcall('GETRANGE', KEYS[i], 0, string.len(ARGV[i]) - 1) == ARGV[i] then
    dropped[i] = redis.call('DEL', KEYS[i])
  end
end
return dropped
"""

# Write something small under each key: whether that is possible is what is asked.
TOUCH = """
local touched = {}
for i = 1, #KEYS do
  redis.call('SET', KEYS[i], 1)
  touched[i] = 1
end
return touched
"""
