"""The Lua scripts of :class:`~gateway.io.registry.redis.RedisRegistry`; Redis runs each atomically.

Keys, all under one root that is also the hash tag (``{copilot-gateway}``), hence in one Cluster
slot, so that one script may touch any of them:

=========================  =======  ==========================================================
``<root>:meta``            hash     ``schema``; ``floor``, the highest epoch ever forgotten;
                                    ``changes`` and ``leases``, the numbers of the latest;
                                    ``run_id`` and ``since``, the server that keeps the data, and
                                    its time in ms when it was first met
``<root>:s:<session>``     hash     a record: ``tenant``, ``user``, ``replica``, ``epoch``
``<root>:h:<session>``     hash     holds: gateway id -> incarnation of the replica and number of
                                    the gateway's lease, as they were when it was taken
``<root>:t:<tenant>``      set      session ids of a tenant
``<root>:u:<n>:<t>:<u>``   set      session ids of a user; ``n`` is the tenant's length in bytes
``<root>:r:<replica>``     set      session ids on a replica
``<root>:counts``          hash     replica -> number of records
``<root>:gateways``        hash     gateway id -> end of its lease, server time in ms; its number;
                                    run id of the server that renewed it
``<root>:marks``           hash     replica -> mark
``<root>:incarnations``    hash     replica -> incarnation
``<root>:changes``         stream   ``n`` number, ``o`` origin, and ``s`` session or ``r`` replica
=========================  =======  ==========================================================

Every script takes the root as its only key. A record travels as ``{session, tenant, user, replica,
epoch}``; ``LEASE`` and ``SETTLING`` in its stead mean that nothing was done.
"""

from __future__ import annotations

CHANGES_KEPT = 10_000
"""Changes that stay readable for watchers; whoever falls further behind reads everything again."""

_COMMON = """
local root = KEYS[1]
local meta, gateways, counts = root..':meta', root..':gateways', root..':counts'
local marks, incarnations, changes = root..':marks', root..':incarnations', root..':changes'

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function server()
  local info = redis.pcall('INFO', 'server')  -- may be forbidden to us: then every server is alike
  return type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
end

-- The number of a gateway's lease while it runs, and the server it was renewed on; else nil.
local function lease(gateway)
  local text = redis.call('HGET', gateways, gateway)
  if not text then return nil end
  local ends, number, run_id = string.match(text, '(%d+) (%d+) (%w*)')
  if tonumber(ends) > now() then return number, run_id end
end

local function no_lease(gateway)
  return gateway ~= '' and not lease(gateway)
end

local function incarnation(replica)
  return redis.call('HGET', incarnations, replica) or '0'
end

local function read(session)
  local f = redis.call('HMGET', root..':s:'..session, 'tenant', 'user', 'replica', 'epoch')
  if not f[1] then return nil end
  return {session, f[1], f[2], f[3], f[4]}
end

local function owners_key(tenant, user)
  return root..':u:'..#tenant..':'..tenant..':'..user
end

local function log(origin, kind, name)
  local number = redis.call('HINCRBY', meta, 'changes', 1)
  redis.call('XADD', changes, 'MAXLEN', '~', CHANGES_KEPT, '*',
    'n', number, 'o', origin, kind, name)
end

local function count(replica, by)
  if redis.call('HINCRBY', counts, replica, by) <= 0 then
    redis.call('HDEL', counts, replica)
  end
end

local function insert(origin, session, tenant, user, replica, epoch)
  redis.call('HSET', root..':s:'..session,
    'tenant', tenant, 'user', user, 'replica', replica, 'epoch', epoch)
  redis.call('SADD', root..':t:'..tenant, session)
  redis.call('SADD', owners_key(tenant, user), session)
  redis.call('SADD', root..':r:'..replica, session)
  count(replica, 1)
  log(origin, 's', session)
end

local function replace(origin, record, replica, epoch)
  local session = record[1]
  redis.call('HSET', root..':s:'..session, 'replica', replica, 'epoch', epoch)
  redis.call('DEL', root..':h:'..session)
  redis.call('SREM', root..':r:'..record[4], session)
  redis.call('SADD', root..':r:'..replica, session)
  count(record[4], -1)
  count(replica, 1)
  log(origin, 's', session)
end

-- The gateways whose holds count; holds that never will again are removed on the way.
local function holders(record)
  local key, found = root..':h:'..record[1], {}
  local held = redis.call('HGETALL', key)
  local current = incarnation(record[4])
  for i = 1, #held, 2 do
    if held[i + 1] == current..' '..(lease(held[i]) or 'ended') then
      table.insert(found, held[i])
    else
      redis.call('HDEL', key, held[i])
    end
  end
  return found
end

local function held_by_others(record, gateway)
  for _, holder in ipairs(holders(record)) do
    if holder ~= gateway then return true end
  end
  return false
end

local function take_hold(record, gateway)
  if gateway ~= '' then
    local number = lease(gateway)
    local value = incarnation(record[4])..' '..number
    redis.call('HSET', root..':h:'..record[1], gateway, value)
  end
end

-- Milliseconds since this server was first met with these data; it may have lost what was
-- acknowledged before (restarted, or promoted from a replica that lagged behind).
local function age()
  local known = redis.call('HMGET', meta, 'run_id', 'since')
  local run_id = server()
  if known[1] == run_id and tonumber(known[2]) <= now() then return now() - tonumber(known[2]) end
  redis.call('HSET', meta, 'run_id', run_id, 'since', now())
  return 0
end
""".replace("CHANGES_KEPT", str(CHANGES_KEPT))

OPEN = (
    _COMMON
    + """
local schema = ARGV[1]
redis.call('HSETNX', meta, 'schema', schema)
age()
local memory = redis.pcall('INFO', 'memory')
local policy = type(memory) == 'string' and string.match(memory, 'maxmemory_policy:([%w-]+)') or ''
return {redis.call('HGET', meta, 'schema'), policy}
"""
)

GET = (
    _COMMON
    + """
local found = {}
for _, session in ipairs(ARGV) do
  local record = read(session)
  if record then table.insert(found, record) end
end
return found
"""
)

CLAIM = (
    _COMMON
    + """
local origin, gateway, session, tenant, user, replica, settle = unpack(ARGV)
if no_lease(gateway) then return {'LEASE'} end
local record = read(session)
if not record then
  if settle ~= '' and age() < tonumber(settle) then return {'SETTLING'} end
  local epoch = (redis.call('HGET', meta, 'floor') or 0) + 1
  insert(origin, session, tenant, user, replica, epoch)
  record = {session, tenant, user, replica, tostring(epoch)}
end
if record[2] == tenant and record[3] == user then take_hold(record, gateway) end
return record
"""
)

MOVE = (
    _COMMON
    + """
local origin, gateway, session, epoch, replica = unpack(ARGV)
if no_lease(gateway) then return {'LEASE'} end
local record = read(session)
if not record then return {} end
local next_epoch = tostring(tonumber(epoch) + 1)
if record[5] == epoch and not held_by_others(record, gateway) then
  replace(origin, record, replica, next_epoch)
  record[4], record[5] = replica, next_epoch
end
if record[5] == next_epoch and record[4] == replica then take_hold(record, gateway) end
return record
"""
)

FORGET = (
    _COMMON
    + """
local origin, gateway, session, epoch = unpack(ARGV)
if no_lease(gateway) then return {'LEASE'} end
local record = read(session)
if not record or (epoch ~= '' and record[5] ~= epoch) then return 0 end
if held_by_others(record, gateway) then return 0 end
local floor = tonumber(redis.call('HGET', meta, 'floor') or 0)
redis.call('HSET', meta, 'floor', math.max(floor, tonumber(record[5])))
redis.call('DEL', root..':s:'..session, root..':h:'..session)
redis.call('SREM', root..':t:'..record[2], session)
redis.call('SREM', owners_key(record[2], record[3]), session)
redis.call('SREM', root..':r:'..record[4], session)
count(record[4], -1)
log(origin, 's', session)
return 1
"""
)

HEARTBEAT = (
    _COMMON
    + """
local gateway, ttl = ARGV[1], tonumber(ARGV[2])
age()
local run_id = server()
local number, renewed_on = lease(gateway)
local known = number and renewed_on == run_id
local all = redis.call('HKEYS', gateways)
for _, other in ipairs(all) do
  if not lease(other) then redis.call('HDEL', gateways, other) end
end
number = number or redis.call('HINCRBY', meta, 'leases', 1)
redis.call('HSET', gateways, gateway,
  string.format('%.0f %s %s', now() + ttl, number, run_id))
return known and 1 or 0
"""
)

HOLD = (
    _COMMON
    + """
local gateway, session, epoch = unpack(ARGV)
if no_lease(gateway) then return {'LEASE'} end
local record = read(session)
if not record then return {} end
if record[5] == epoch then take_hold(record, gateway) end
return record
"""
)

RELEASE = (
    _COMMON
    + """
for i = 2, #ARGV do redis.call('HDEL', root..':h:'..ARGV[i], ARGV[1]) end
return 1
"""
)

HOLDERS = (
    _COMMON
    + """
local record = read(ARGV[1])
return record and holders(record) or {}
"""
)

REPUBLISH = (
    _COMMON
    + """
local origin, gateway = ARGV[1], ARGV[2]
if no_lease(gateway) then return {'LEASE'} end
local standing = {}
for i = 3, #ARGV, 5 do
  local session, tenant, user, replica, epoch = unpack(ARGV, i, i + 4)
  local record = read(session)
  local same_owner = record and record[2] == tenant and record[3] == user
  if not record then
    insert(origin, session, tenant, user, replica, epoch)
    record = {session, tenant, user, replica, epoch}
  elseif same_owner and tonumber(record[5]) < tonumber(epoch) then
    replace(origin, record, replica, epoch)
    record[4], record[5] = replica, epoch
  end
  if record[2] == tenant and record[3] == user
      and record[4] == replica and record[5] == epoch then
    take_hold(record, gateway)
  end
  table.insert(standing, record)
end
return standing
"""
)

FENCE = (
    _COMMON
    + """
local origin, replica, expected = unpack(ARGV)
local current = incarnation(replica)
if current ~= expected then return tonumber(current) end
redis.call('HINCRBY', incarnations, replica, 1)
log(origin, 'r', replica)
return tonumber(current) + 1
"""
)

MARK = (
    _COMMON
    + """
local origin, replica, mark = unpack(ARGV)
if mark == '' then
  redis.call('HDEL', marks, replica)
else
  redis.call('HSET', marks, replica, mark)
end
log(origin, 'r', replica)
return 1
"""
)

REPLICAS = (
    _COMMON
    + """
local found = {}
for _, replica in ipairs(ARGV) do
  table.insert(found, {replica, redis.call('HGET', marks, replica) or '', incarnation(replica)})
end
return found
"""
)
