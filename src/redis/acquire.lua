-- One order on one rate-limited key: the sliding window of src/traffic/window.rs, step by step, on Redis's clock.
--
-- KEYS[1]  a hash: w slot length, h newest slot seen, o no slot before it is taken from, t tokens taken, p tokens parked;
--          <slot> tokens taken in that slot, p<slot> those of them that are parked
-- ARGV     limit, slot length (us), waiting, ahead, report: slot, unused, settled; then, for tests alone, the time (us)
-- Answers  one string: "granted remaining reset_us valid_us slot"
--
-- Calls of Redis per run: TIME, HMGET, HSET, and in a new slot PEXPIRE, with HMGET and HDEL for what has left the window:
-- each slot is looked at once. A refusal in a slot already seen writes nothing.
local SLOTS = 128
local key = KEYS[1]
local limit, width = tonumber(ARGV[1]), tonumber(ARGV[2])
local waiting, ahead = tonumber(ARGV[3]), tonumber(ARGV[4])
local reported, unused, settled = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local now = tonumber(ARGV[8])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local slot = math.floor(now / width)

local known = redis.call('HMGET', key, 'w', 'h', 'o', 't', 'p', slot, 'p' .. slot)
local head = tonumber(known[2])
local oldest, total, parked = tonumber(known[3]), tonumber(known[4]), tonumber(known[5])
local count, count_parked = tonumber(known[6]) or 0, tonumber(known[7]) or 0

-- Another window, a clock set back by more than a window, or nothing left in the window: start anew.
local fresh = not head or tonumber(known[1]) ~= width or slot + SLOTS < head or slot > head + SLOTS or total == 0
local new_slot = fresh or slot > head
local changed = new_slot
if fresh then
  if head then redis.call('DEL', key) end
  oldest, total, parked, count, count_parked = slot, 0, 0, 0, 0
elseif slot < head then
  slot = head
  local cell = redis.call('HMGET', key, slot, 'p' .. slot)
  count, count_parked = tonumber(cell[1]) or 0, tonumber(cell[2]) or 0
end

local had_parked = parked > 0
local gone = {}
local function forget(of)
  gone[#gone + 1] = of
  gone[#gone + 1] = 'p' .. of
end

-- Drops what has left the window, and makes `oldest` the first slot that tokens are taken from.
local emptied = false
local function find_oldest()
  while total > 0 and oldest < slot do
    local last = math.min(oldest + 31, slot)
    local fields = {}
    for of = oldest, last do fields[#fields + 1] = of end
    local counts = redis.call('HMGET', key, unpack(fields))
    for index, of in ipairs(fields) do
      local found = tonumber(counts[index])
      if found and of + SLOTS < slot then
        total = total - found
        if parked > 0 then parked = parked - (tonumber(redis.call('HGET', key, 'p' .. of)) or 0) end
        forget(of)
      elseif (found and of ~= emptied) or of == slot then
        oldest = of
        return
      end
    end
    oldest = last + 1
  end
  oldest = math.min(oldest, slot)
end
if not fresh and oldest + SLOTS < slot then
  find_oldest()
  changed = true
end

-- The report. A slot that has left the window, or was never seen, changes nothing.
local other, other_parked
if unused + settled > 0 and not fresh and reported + SLOTS >= slot then
  local taken, taken_parked = count, count_parked
  if reported ~= slot then
    local cell = redis.call('HMGET', key, reported, 'p' .. reported)
    taken, taken_parked = tonumber(cell[1]) or 0, tonumber(cell[2]) or 0
  end
  if taken > 0 then
    local left = taken - math.min(unused, taken)
    local left_parked = math.min(math.max(taken_parked - settled, 0), left)
    total = total - (taken - left)
    parked = parked - (taken_parked - left_parked)
    changed = true
    if reported == slot then
      count, count_parked = left, left_parked
    else
      other, other_parked = left, left_parked
    end
    if left == 0 then
      forget(reported)
      emptied = reported
      if reported == oldest then find_oldest() end
    end
  end
end

local free = math.max(limit - total, 0)
local granted = math.min(waiting, free)
free = free - granted
local extra = 0
if granted == waiting then
  local room = math.max(math.floor(limit / 100) - parked, 0)
  extra = math.min(ahead, math.floor(math.min(room, free) / 2))
end
granted = granted + extra

if total == 0 then oldest = slot end
if granted > 0 then
  total = total + granted
  parked = parked + extra
  count = count + granted
  count_parked = count_parked + extra
  changed = true
end

if changed and total == 0 then
  if not fresh then redis.call('DEL', key) end
elseif changed then
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  local fields = { 't', total }
  local function put(field, value)
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end
  if new_slot then put('h', slot) end
  if fresh then put('w', width) end
  if fresh or oldest ~= tonumber(known[3]) then put('o', oldest) end
  if fresh or parked ~= tonumber(known[5]) then put('p', parked) end
  local function set(of, value, value_parked)
    if value == 0 then return end
    put(of, value)
    if value_parked > 0 or had_parked then put('p' .. of, value_parked) end
  end
  set(slot, count, count_parked)
  if other then set(reported, other, other_parked) end
  redis.call('HSET', key, unpack(fields))
  if new_slot then redis.call('PEXPIRE', key, math.ceil((SLOTS + 2) * width / 1000)) end
end

local reset = 0
if total > 0 then reset = math.max((oldest + SLOTS + 1) * width - now, 0) end
local valid = math.min((slot + 1) * width - now, width)
return string.format('%d %d %d %d %d', granted, free - extra, reset, valid, slot)
