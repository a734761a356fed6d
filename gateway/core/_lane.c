/* The C twins of gateway.core.lane: what they do to clients, links and counters is defined there.
 *
 * The objects are the ordinary Python ones. Their __slots__ are read and written in place, at the
 * offset that the slot's descriptor names, remembered per type as the interpreter's own inline
 * caches do. Whatever is not as expected, a missing slot included, ends the pass at that frame, and
 * the caller deals with it in Python. */
#include "../wire/_scan.h"
#include "../wire/_stream.h"
#include <structmember.h>

#ifdef Py_GIL_DISABLED
#error "slots are accessed under the protection of the interpreter lock"
#endif

/* --- slots ---------------------------------------------------------------------------------- */

struct slot {
    const char *name;
    PyObject *interned;
    PyTypeObject *type; /* a strong reference, so that no other type takes its address */
    Py_ssize_t offset;
};

/* Look the slot up in the type of an object; false if that type has no such slot. */
static int resolve(struct slot *slot, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (slot->interned == NULL && (slot->interned = PyUnicode_InternFromString(slot->name)) == NULL)
        goto unknown;
    PyObject *found = PyObject_GetAttr((PyObject *)type, slot->interned);
    if (found == NULL)
        goto unknown;
    int usable = 0;
    if (Py_IS_TYPE(found, &PyMemberDescr_Type)) {
        const PyMemberDef *member = ((PyMemberDescrObject *)found)->d_member;
        if (member->type == T_OBJECT_EX && (member->flags & READONLY) == 0) {
            slot->offset = member->offset;
            Py_XSETREF(slot->type, (PyTypeObject *)Py_NewRef(type));
            usable = 1;
        }
    }
    Py_DECREF(found);
    return usable;
unknown:
    PyErr_Clear();
    return 0;
}

static inline PyObject **place(struct slot *slot, PyObject *object)
{
    if (Py_TYPE(object) != slot->type && !resolve(slot, object))
        return NULL;
    return (PyObject **)((char *)object + slot->offset);
}

/* The value of a slot, borrowed; NULL if there is none. */
static inline PyObject *get(struct slot *slot, PyObject *object)
{
    PyObject **at = place(slot, object);
    return at == NULL ? NULL : *at;
}

/* Add to an integer slot; false with an exception set, or if it holds no small integer. */
static int add(struct slot *slot, PyObject *object, long long amount)
{
    PyObject **at = place(slot, object);
    if (at == NULL || *at == NULL || !PyLong_CheckExact(*at)) {
        PyErr_Format(PyExc_TypeError, "%s is no counter", slot->name);
        return 0;
    }
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(*at, &overflow);
    PyObject *sum = overflow ? NULL : PyLong_FromLongLong(value + amount);
    if (sum == NULL) {
        if (overflow)
            PyErr_Format(PyExc_OverflowError, "%s", slot->name);
        return 0;
    }
    Py_SETREF(*at, sum);
    return 1;
}

#define SLOT(variable, name) static struct slot variable = {name, NULL, NULL, 0}
SLOT(reader_client, "client");
SLOT(reader_link, "link");
SLOT(client_reads, "reads");
SLOT(link_reads, "reads");
SLOT(client_authenticating, "authenticating");
SLOT(client_begun, "begun");
SLOT(client_buffer, "_buffer");
SLOT(client_hub, "hub");
SLOT(buffer_max_frame, "max_frame");
SLOT(client_closed, "closed");
SLOT(client_old, "_old");
SLOT(client_sink, "sink");
SLOT(client_bindings, "bindings");
SLOT(client_pending, "pending");
SLOT(client_direct, "direct");
SLOT(client_allowance, "allowance");
SLOT(client_tenant, "tenant_stats");
SLOT(tenant_requests, "requests");
SLOT(binding_open, "open");
SLOT(binding_link, "link");
SLOT(binding_cut, "cut");
SLOT(binding_session, "session");
SLOT(binding_horizon, "_horizon");
SLOT(horizon_lease_until, "lease_until");
SLOT(horizon_idles_until, "idles_until");
SLOT(session_turn, "turn");
SLOT(session_stored, "stored");
SLOT(turn_aborting, "aborting");
SLOT(turn_aliases, "aliases");
SLOT(turn_answers, "answers");
SLOT(turn_asked, "asked");
SLOT(turn_busy, "busy");
SLOT(turn_cut, "cut");
SLOT(turn_prompts, "prompts");
SLOT(turn_started, "started");
SLOT(prompt_answered, "answered");
SLOT(prompt_message_id, "message_id");
SLOT(prompt_missing, "missing");
SLOT(prompt_owed, "owed");
SLOT(prompt_request, "_request");
SLOT(prompt_resent_as, "resent_as");
SLOT(prompt_seen, "seen");
SLOT(prompt_sender, "sender");
SLOT(prompt_size, "size");
SLOT(link_client, "client");
SLOT(link_closed, "closed");
SLOT(link_sink, "sink");
SLOT(link_sent, "sent");
SLOT(link_stats, "stats");
SLOT(link_aliases, "_aliases");
SLOT(link_begun, "begun");
SLOT(link_buffer, "_buffer");
SLOT(link_hub, "_hub");
SLOT(link_answers_alone, "answers_alone");
SLOT(link_replica, "replica");
SLOT(replica_stats, "stats");
SLOT(replica_in_flight, "in_flight");
SLOT(stats_bytes_from_client, "bytes_from_client");
SLOT(stats_bytes_from_replica, "bytes_from_replica");
SLOT(stats_from_client, "frames_from_client");
SLOT(stats_events, "events_forwarded");
SLOT(stats_from_replica, "frames_from_replica");
SLOT(stats_to_client, "frames_to_client");
SLOT(stats_bytes_to_client, "bytes_to_client");
SLOT(stats_to_replica, "frames_to_replica");
SLOT(stats_bytes_to_replica, "bytes_to_replica");
SLOT(method_ok, "ok");
SLOT(method_duration, "duration");
SLOT(histogram_bounds, "bounds");
SLOT(histogram_counts, "counts");
SLOT(histogram_sum, "sum");

/* Of both types, so that neither drives the other's offsets out. */
enum { LINK, BINDING, REQUEST, RULE, STATS, STARTED, HOOK, NOTES, REWRITES };
static struct slot pending_slots[] = {
    [LINK] = {"link", NULL, NULL, 0},       [BINDING] = {"binding", NULL, NULL, 0},
    [REQUEST] = {"request", NULL, NULL, 0}, [RULE] = {"rule", NULL, NULL, 0},
    [STATS] = {"stats", NULL, NULL, 0},     [STARTED] = {"started", NULL, NULL, 0},
};
static struct slot hooked_slots[] = {
    [LINK] = {"link", NULL, NULL, 0},       [BINDING] = {"binding", NULL, NULL, 0},
    [REQUEST] = {"request", NULL, NULL, 0}, [RULE] = {"rule", NULL, NULL, 0},
    [STATS] = {"stats", NULL, NULL, 0},     [STARTED] = {"started", NULL, NULL, 0},
    [HOOK] = {"hook", NULL, NULL, 0},       [NOTES] = {"notes", NULL, NULL, 0},
    [REWRITES] = {"rewrites", NULL, NULL, 0},
};

/* gateway.core.pending.Pending, and its subclass of those with a hook */
static PyTypeObject *pending_type, *hooked_type;
/* gateway.core.turn.Prompt */
static PyTypeObject *prompt_type;
static PyObject *write_name, *allows_name, *prompted_name, *event_name, *feed_name, *timed_name,
    *now_name, *stats_name, *acknowledge_name, *limits_name, *max_pending_name, *zero;

enum outcome { FAILED = -1, STOP = 0, PASSED = 1 };

static int fill(struct slot *slot, PyObject *object, PyObject *value)
{
    PyObject **at = place(slot, object);
    if (at == NULL) {
        PyErr_Format(PyExc_TypeError, "%s is no slot", slot->name);
        return 0;
    }
    Py_XSETREF(*at, Py_NewRef(value));
    return 1;
}

/* --- turns ---------------------------------------------------------------------------------- */

/* The twins of Binding.prompted, prompt_answered and event for a turn of which nothing is special:
 * one prompt at a time, and nothing asked or sent again. For all others STOP is returned with nothing
 * noted, and they are called. */

static PyObject *turn_of(PyObject *binding)
{
    PyObject *session = get(&binding_session, binding);
    return session == NULL || session == Py_None ? NULL : get(&session_turn, session);
}

/* Whether a time lies before what a slot of the binding's horizon says. */
static int is_before(PyObject *time, struct slot *slot, PyObject *binding)
{
    PyObject *horizon = get(&binding_horizon, binding);
    PyObject *until = horizon == NULL ? NULL : get(slot, horizon);
    return until != NULL && PyFloat_CheckExact(until) && PyFloat_CheckExact(time) &&
           PyFloat_AS_DOUBLE(time) < PyFloat_AS_DOUBLE(until);
}

/* Note a prompt; *prompt is then a new reference. */
static enum outcome note_prompt(PyObject *binding, PyObject *frame, PyObject *rule, PyObject *now,
                                PyObject **prompt)
{
    PyObject *turn = turn_of(binding);
    PyObject *prompts = turn == NULL ? NULL : get(&turn_prompts, turn);
    if (prompts == NULL || !PyList_CheckExact(prompts) || PyList_GET_SIZE(prompts) != 0 ||
        !is_before(now, &horizon_lease_until, binding))
        return STOP;
    Py_INCREF(turn);
    PyObject *request = PyTuple_Pack(2, frame, rule);
    PyObject *size = PyLong_FromSsize_t(PyBytes_GET_SIZE(frame));
    PyObject *made = prompt_type->tp_alloc(prompt_type, 0);
    int good = request != NULL && size != NULL && made != NULL &&
               fill(&prompt_sender, made, binding) && fill(&prompt_request, made, request) &&
               fill(&prompt_size, made, size) && fill(&prompt_message_id, made, Py_None) &&
               fill(&prompt_resent_as, made, Py_None) && fill(&prompt_answered, made, Py_False) &&
               fill(&prompt_owed, made, Py_False) && fill(&prompt_seen, made, Py_False) &&
               fill(&prompt_missing, made, Py_False) && PyList_Append(prompts, made) == 0 &&
               fill(&turn_busy, turn, Py_True);
    Py_XDECREF(size);
    Py_XDECREF(request);
    Py_DECREF(turn);
    if (!good) {
        Py_XDECREF(made);
        return FAILED;
    }
    *prompt = made;
    return PASSED;
}

/* Note the good answer to a prompt, whose result starts at p. */
static enum outcome note_accepted(PyObject *prompt, const char *p, const char *end)
{
    PyObject *binding = get(&prompt_sender, prompt);
    if (binding == NULL || get(&binding_session, binding) == NULL ||
        get(&binding_session, binding) == Py_None ||
        get(&prompt_message_id, prompt) != Py_None || !SKIP(&p, end, ":{\"messageId\":\""))
        return STOP;
    const char *start = p;
    while (p < end && is_id_char((unsigned char)*p))
        p++;
    if (p == start || end - p != 3 || memcmp(p, "\"}}", 3) != 0)
        return STOP;
    PyObject *message_id = PyUnicode_DecodeASCII(start, p - start, NULL);
    if (message_id == NULL)
        return FAILED;
    int good = fill(&prompt_answered, prompt, Py_True) &&
               fill(&prompt_message_id, prompt, message_id);
    Py_DECREF(message_id);
    return good ? PASSED : FAILED;
}

static int is_worked_off(PyObject *prompt)
{
    return Py_IS_TYPE(prompt, prompt_type) && get(&prompt_missing, prompt) == Py_False &&
           get(&prompt_owed, prompt) == Py_False &&
           (get(&prompt_answered, prompt) == Py_True || get(&prompt_seen, prompt) == Py_True);
}

/* Note that a turn has ended. */
static enum outcome note_idle(PyObject *binding, PyObject *now)
{
    PyObject *time = PyObject_CallNoArgs(now);
    if (time == NULL)
        return FAILED;
    int silent = is_before(time, &horizon_idles_until, binding);
    Py_DECREF(time);
    PyObject *turn = silent ? turn_of(binding) : NULL, *prompts, *aliases, *asked, *answers;
    if (turn == NULL || (prompts = get(&turn_prompts, turn)) == NULL ||
        (aliases = get(&turn_aliases, turn)) == NULL || (asked = get(&turn_asked, turn)) == NULL ||
        (answers = get(&turn_answers, turn)) == NULL || !PyList_CheckExact(prompts) ||
        PyList_GET_SIZE(prompts) > 1 || !PyDict_CheckExact(aliases) ||
        PyDict_GET_SIZE(aliases) != 0 || !PyDict_CheckExact(asked) || PyDict_GET_SIZE(asked) != 0 ||
        !PyDict_CheckExact(answers) || PyDict_GET_SIZE(answers) != 0 ||
        (PyList_GET_SIZE(prompts) == 1 && !is_worked_off(PyList_GET_ITEM(prompts, 0))))
        return STOP;
    PyObject *session = Py_NewRef(get(&binding_session, binding));
    Py_INCREF(turn);
    int good = fill(&turn_busy, turn, Py_False) && fill(&turn_started, turn, Py_False) &&
               fill(&turn_aborting, turn, Py_False) && fill(&turn_cut, turn, Py_False) &&
               fill(&binding_cut, binding, Py_False) && fill(&session_stored, session, Py_True) &&
               PyList_SetSlice(prompts, 0, PyList_GET_SIZE(prompts), NULL) == 0;
    Py_DECREF(turn);
    Py_DECREF(session);
    return good ? PASSED : FAILED;
}

/* --- requests ------------------------------------------------------------------------------- */

/* Return a new Pending, or with a hook that takes note of the answer one with a hook. */
static PyObject *make_pending(PyObject *link, PyObject *binding, PyObject *frame, PyObject *direct,
                              PyObject *started, PyObject *hook)
{
    PyTypeObject *type = hook == NULL ? pending_type : hooked_type;
    PyObject *pending = type->tp_alloc(type, 0);
    if (pending == NULL)
        return NULL;
    struct slot *at = hook == NULL ? pending_slots : hooked_slots;
    if (fill(at++, pending, link) && fill(at++, pending, binding) && fill(at++, pending, frame) &&
        fill(at++, pending, PyTuple_GET_ITEM(direct, 0)) &&
        fill(at++, pending, PyTuple_GET_ITEM(direct, 1)) && fill(at++, pending, started) &&
        (hook == NULL || (fill(at++, pending, hook) && fill(at++, pending, Py_True) &&
                          fill(at++, pending, Py_False))))
        return pending;
    Py_DECREF(pending);
    return NULL;
}

/* Ask the client's quotas; they count the message if they allow it. */
static enum outcome allowed(PyObject *client, Py_ssize_t size)
{
    PyObject *allowance = get(&client_allowance, client);
    if (allowance == Py_None)
        return PASSED;
    if (allowance == NULL)
        return STOP;
    PyObject *bytes = PyLong_FromSsize_t(size);
    if (bytes == NULL)
        return FAILED;
    PyObject *answer = PyObject_CallMethodOneArg(client, allows_name, bytes);
    Py_DECREF(bytes);
    if (answer == NULL)
        return FAILED;
    int yes = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return yes < 0 ? FAILED : yes ? PASSED : STOP;
}

/* What a request needs, found before anything is changed. Borrowed until held: what is called in
 * between (quotas, the clock, the sink) may run any code. */
struct route {
    PyObject *binding, *link, *sink, *replica_stats, *direct, *pending, *tenant;
};

static void hold(const struct route *route)
{
    Py_INCREF(route->binding);
    Py_INCREF(route->link);
    Py_INCREF(route->sink);
    Py_INCREF(route->replica_stats);
    Py_INCREF(route->direct);
    Py_INCREF(route->pending);
    Py_INCREF(route->tenant);
}

static void release(const struct route *route)
{
    Py_DECREF(route->binding);
    Py_DECREF(route->link);
    Py_DECREF(route->sink);
    Py_DECREF(route->replica_stats);
    Py_DECREF(route->direct);
    Py_DECREF(route->pending);
    Py_DECREF(route->tenant);
}

/* Find out where a request goes; STOP if it does not simply pass. */
static enum outcome find_route(PyObject *client, const struct span *method,
                               const struct span *session_id, PyObject *id, Py_ssize_t max_pending,
                               struct route *route)
{
    PyObject *bindings = get(&client_bindings, client), *table = get(&client_direct, client);
    route->pending = get(&client_pending, client);
    route->tenant = get(&client_tenant, client);
    if (bindings == NULL || table == NULL || route->pending == NULL || route->tenant == NULL ||
        route->tenant == Py_None || !PyDict_CheckExact(bindings) || !PyDict_CheckExact(table) ||
        !PyDict_CheckExact(route->pending) || PyDict_GET_SIZE(route->pending) >= max_pending)
        return STOP;
    PyObject *key = PyUnicode_DecodeASCII(session_id->start, session_id->end - session_id->start,
                                          NULL);
    if (key == NULL)
        return FAILED;
    route->binding = PyDict_GetItemWithError(bindings, key);
    Py_DECREF(key);
    if (route->binding == NULL)
        return PyErr_Occurred() ? FAILED : STOP;
    if (get(&binding_open, route->binding) != Py_True)
        return STOP;
    key = PyUnicode_DecodeASCII(method->start, method->end - method->start, NULL);
    if (key == NULL)
        return FAILED;
    route->direct = PyDict_GetItemWithError(table, key);
    Py_DECREF(key);
    if (route->direct == NULL)
        return PyErr_Occurred() ? FAILED : STOP;
    int known = PyDict_Contains(route->pending, id);
    if (known != 0)
        return known < 0 ? FAILED : STOP;
    route->link = get(&binding_link, route->binding);
    if (route->link == NULL || route->link == Py_None ||
        get(&link_closed, route->link) != Py_False ||
        (route->sink = get(&link_sink, route->link)) == NULL || route->sink == Py_None)
        return STOP;
    PyObject *replica = get(&link_replica, route->link);
    if (replica == NULL || (route->replica_stats = get(&replica_stats, replica)) == NULL ||
        !PyTuple_CheckExact(route->direct) || PyTuple_GET_SIZE(route->direct) != 3)
        return STOP;
    return PASSED;
}

/* Note a request and send its frame; STOP with nothing noted if it may not simply pass. */
static enum outcome forward(const struct route *route, PyObject *client, PyObject *id,
                            PyObject *frame, Py_ssize_t size, PyObject *stats, PyObject *now)
{
    PyObject *hook = NULL, *started = NULL, *pending = NULL, *done = NULL;
    enum outcome outcome = FAILED;
    if (PyTuple_GET_ITEM(route->direct, 2) != Py_True) {
        enum outcome allows = allowed(client, size);
        if (allows != PASSED)
            return allows;
        started = PyObject_CallNoArgs(now);
    } else if ((started = PyObject_CallNoArgs(now)) != NULL) {
        PyObject *rule = PyTuple_GET_ITEM(route->direct, 0);
        enum outcome noted = note_prompt(route->binding, frame, rule, started, &hook);
        if (noted == STOP)
            hook = PyObject_CallMethodObjArgs(route->binding, prompted_name, frame, rule, started,
                                              NULL);
        if (hook == NULL)
            goto end;
        if (hook == Py_None) {
            outcome = STOP;
            goto end;
        }
    }
    if (started == NULL)
        goto end;
    pending = make_pending(route->link, route->binding, frame, route->direct, started, hook);
    if (pending == NULL || PyDict_SetItem(route->pending, id, pending) ||
        !add(&tenant_requests, route->tenant, 1) || !add(&stats_from_client, stats, 1) ||
        !add(&replica_in_flight, route->replica_stats, 1) ||
        !fill(&link_sent, route->link, Py_True) || !add(&stats_to_replica, stats, 1) ||
        !add(&stats_bytes_to_replica, stats, PyBytes_GET_SIZE(frame)))
        goto end;
    done = PyObject_CallMethodOneArg(route->sink, write_name, frame);
    if (done != NULL)
        outcome = PASSED;
end:
    Py_XDECREF(hook);
    Py_XDECREF(started);
    Py_XDECREF(pending);
    Py_XDECREF(done);
    return outcome;
}

/* Deal with the request at *pos. */
static enum outcome pass_request(PyObject *client, PyObject *stats, PyObject *now, PyObject *data,
                                 Py_ssize_t *pos, Py_ssize_t max_frame, Py_ssize_t max_pending)
{
    const char *base = PyBytes_AS_STRING(data);
    Py_ssize_t size = PyBytes_GET_SIZE(data);
    struct span body, method = {NULL, NULL}, session_id = {NULL, NULL};
    if (get(&client_closed, client) != Py_False ||
        !find_body(base + *pos, base + size, &body) || body.end - body.start > max_frame)
        return STOP;
    struct scanner s; /* its table of keys is large, and filled as it goes */
    s.p = body.start;
    s.end = body.end;
    s.key_count = 0;
    PyObject *id = NULL;
    enum outcome outcome = STOP;
    struct route route;
    if (scan_message(&s, &id, &method, &session_id) && id != NULL && session_id.start != NULL)
        outcome = find_route(client, &method, &session_id, id, max_pending, &route);
    else if (PyErr_Occurred())
        outcome = FAILED;
    if (outcome == PASSED) {
        hold(&route);
        Py_ssize_t end = body.end - base;
        PyObject *frame = *pos == 0 && end == size
                              ? Py_NewRef(data)
                              : PyBytes_FromStringAndSize(base + *pos, end - *pos);
        outcome = frame == NULL ? FAILED
                                : forward(&route, client, id, frame, body.end - body.start, stats,
                                          now);
        Py_XDECREF(frame);
        if (outcome == PASSED)
            *pos = end;
        release(&route);
    }
    Py_XDECREF(id);
    return outcome;
}

static PyObject *pass_requests(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    if (count != 7) {
        PyErr_SetString(PyExc_TypeError,
                        "pass_requests(data, pos, max_frame, client, stats, now, max_pending)");
        return NULL;
    }
    Py_ssize_t pos = start_of(args);
    if (pos < 0)
        return NULL;
    Py_ssize_t max_frame = PyLong_AsSsize_t(args[2]), max_pending = PyLong_AsSsize_t(args[6]);
    if (PyErr_Occurred())
        return NULL;
    enum outcome outcome = PASSED;
    while (outcome == PASSED && pos < PyBytes_GET_SIZE(args[0]))
        outcome = pass_request(args[3], args[4], args[5], args[0], &pos, max_frame, max_pending);
    return outcome == FAILED ? NULL : PyLong_FromSsize_t(pos);
}

/* --- answers -------------------------------------------------------------------------------- */

/* The twin of Histogram.observe. */
static int observe(PyObject *histogram, double seconds)
{
    PyObject *bounds = get(&histogram_bounds, histogram);
    PyObject *counts = get(&histogram_counts, histogram);
    PyObject **sum = place(&histogram_sum, histogram);
    if (bounds == NULL || counts == NULL || sum == NULL || *sum == NULL ||
        !PyTuple_CheckExact(bounds) || !PyList_CheckExact(counts) ||
        PyList_GET_SIZE(counts) <= PyTuple_GET_SIZE(bounds)) {
        PyErr_SetString(PyExc_TypeError, "not a histogram");
        return 0;
    }
    Py_ssize_t bucket = 0;
    while (bucket < PyTuple_GET_SIZE(bounds) &&
           PyFloat_AsDouble(PyTuple_GET_ITEM(bounds, bucket)) < seconds)
        bucket++;
    long long before = PyLong_AsLongLong(PyList_GET_ITEM(counts, bucket));
    double total = PyFloat_AsDouble(*sum) + seconds;
    if (PyErr_Occurred())
        return 0;
    PyObject *more = PyLong_FromLongLong(before + 1), *grown = PyFloat_FromDouble(total);
    if (more == NULL || grown == NULL) {
        Py_XDECREF(more);
        Py_XDECREF(grown);
        return 0;
    }
    PyList_SetItem(counts, bucket, more);
    Py_SETREF(*sum, grown);
    return 1;
}

/* Count an answer that arrives now, and let its hook take note of it. */
static enum outcome note_answer(struct slot *slots, PyObject *pending, PyObject *id,
                                PyObject *table, PyObject *load, PyObject *now,
                                const struct span *body, const char *result)
{
    PyObject *stats = get(&slots[STATS], pending), *started = get(&slots[STARTED], pending);
    PyObject *histogram = stats == NULL ? NULL : get(&method_duration, stats);
    if (histogram == NULL || started == NULL)
        return STOP;
    PyObject *time = PyObject_CallNoArgs(now);
    if (time == NULL)
        return FAILED;
    double seconds = PyFloat_AsDouble(time) - PyFloat_AsDouble(started);
    Py_DECREF(time);
    if (PyErr_Occurred() || !observe(histogram, seconds) || !add(&method_ok, stats, 1) ||
        !add(&replica_in_flight, load, -1) || PyDict_DelItem(table, id))
        return FAILED;
    if (slots == pending_slots)
        return PASSED;
    PyObject *hook = get(&slots[HOOK], pending);
    enum outcome noted = Py_IS_TYPE(hook, prompt_type) ? note_accepted(hook, result, body->end)
                                                       : STOP;
    if (noted != STOP)
        return noted;
    PyObject *text = PyBytes_FromStringAndSize(body->start, body->end - body->start);
    if (text == NULL)
        return FAILED;
    PyObject *done = PyObject_CallFunctionObjArgs(hook, Py_True, text, NULL);
    Py_DECREF(text);
    Py_XDECREF(done);
    return done == NULL ? FAILED : PASSED;
}

/* Deal with the body if it is a good answer that the client waits for, and others only note. */
static enum outcome pass_answer(PyObject *link, PyObject *now, const struct span *body)
{
    const char *p = body->start;
    PyObject *client = get(&link_client, link), *table, *replica, *load;
    if (!SKIP(&p, body->end, ID) || client == NULL || client == Py_None ||
        (table = get(&client_pending, client)) == NULL || !PyDict_CheckExact(table) ||
        (replica = get(&link_replica, link)) == NULL ||
        (load = get(&replica_stats, replica)) == NULL)
        return STOP;
    PyObject *id = read_id(&p, body->end);
    if (id == NULL)
        return PyErr_Occurred() ? FAILED : STOP;
    enum outcome outcome = STOP;
    PyObject *pending = SKIP(&p, body->end, ",\"result\"") ? PyDict_GetItemWithError(table, id)
                                                           : NULL;
    if (pending != NULL) {
        struct slot *slots = Py_IS_TYPE(pending, pending_type)  ? pending_slots
                             : Py_IS_TYPE(pending, hooked_type) ? hooked_slots
                                                                : NULL;
        if (slots != NULL && get(&slots[LINK], pending) == link &&
            (slots == pending_slots || (get(&slots[NOTES], pending) == Py_True &&
                                        get(&slots[HOOK], pending) != NULL))) {
            Py_INCREF(pending);
            Py_INCREF(table);
            Py_INCREF(load);
            outcome = note_answer(slots, pending, id, table, load, now, body, p);
            Py_DECREF(load);
            Py_DECREF(table);
            Py_DECREF(pending);
        }
    }
    Py_DECREF(id);
    return PyErr_Occurred() ? FAILED : outcome;
}

static const char IDLE[] = "session.idle";

/* Tell the binding of an event, if the body is one. */
static enum outcome pass_event(PyObject *link, PyObject *now, const struct span *body)
{
    struct span session_id, name;
    PyObject *client = get(&link_client, link), *bindings;
    if (!read_event(body->start, body->end, &session_id, &name) || client == NULL ||
        client == Py_None || (bindings = get(&client_bindings, client)) == NULL ||
        !PyDict_CheckExact(bindings))
        return STOP;
    PyObject *key = PyUnicode_DecodeASCII(session_id.start, session_id.end - session_id.start,
                                          NULL);
    if (key == NULL)
        return FAILED;
    PyObject *binding = PyDict_GetItemWithError(bindings, key);
    Py_DECREF(key);
    if (binding == NULL)
        return PyErr_Occurred() ? FAILED : PASSED;
    Py_INCREF(binding);
    if (name.end - name.start == sizeof IDLE - 1 && memcmp(name.start, IDLE, sizeof IDLE - 1) == 0 &&
        get(&client_closed, client) == Py_False) {
        enum outcome noted = note_idle(binding, now);
        if (noted != STOP) {
            Py_DECREF(binding);
            return noted;
        }
    }
    PyObject *type = PyUnicode_DecodeASCII(name.start, name.end - name.start, NULL);
    PyObject *text = PyBytes_FromStringAndSize(body->start, body->end - body->start);
    PyObject *done = type == NULL || text == NULL
                         ? NULL
                         : PyObject_CallMethodObjArgs(binding, event_name, type, text, NULL);
    Py_XDECREF(type);
    Py_XDECREF(text);
    Py_XDECREF(done);
    Py_DECREF(binding);
    return done == NULL ? FAILED : PASSED;
}

/* The twin of Link.passed and Client.write for a chunk that was passed over whole. STOP if the client
 * wants more than that. */
static enum outcome hand_over(PyObject *link, PyObject *data, Py_ssize_t events, Py_ssize_t answers)
{
    PyObject *client = get(&link_client, link), *stats = get(&link_stats, link);
    PyObject *pending = client == NULL || client == Py_None ? NULL : get(&client_pending, client);
    PyObject *sink = pending == NULL ? NULL : get(&client_sink, client);
    if (stats == NULL || sink == NULL || !PyDict_CheckExact(pending) ||
        get(&client_closed, client) != Py_False || get(&client_old, client) != Py_False)
        return STOP;
    int alone = events == 0 && PyDict_GET_SIZE(pending) == 0;
    if (!(alone ? add(&link_answers_alone, link, 1) : fill(&link_answers_alone, link, zero)) ||
        !add(&stats_events, stats, events) || !add(&stats_from_replica, stats, events + answers) ||
        !add(&stats_to_client, stats, events + answers) ||
        !add(&stats_bytes_to_client, stats, PyBytes_GET_SIZE(data)))
        return FAILED;
    Py_INCREF(sink);
    PyObject *done = PyObject_CallMethodOneArg(sink, write_name, data);
    Py_DECREF(sink);
    Py_XDECREF(done);
    return done == NULL ? FAILED : PASSED;
}

struct passed {
    Py_ssize_t pos, events, answers;
};

/* Let the frames from passed->pos on pass. PASSED if they were all there is, and were handed over;
 * STOP otherwise. */
static enum outcome pass_all(PyObject *link, PyObject *data, PyObject *now, Py_ssize_t max_frame,
                             struct passed *passed)
{
    const char *base = PyBytes_AS_STRING(data);
    const char *start = base + passed->pos, *p = start, *end = base + PyBytes_GET_SIZE(data);
    struct span body, known = {NULL, NULL};
    while (find_body(p, end, &body)) {
        Py_ssize_t *counter = &passed->events;
        if (!is_quiet(&body, &known)) {
            enum outcome outcome = STOP;
            if (body.end - body.start <= max_frame &&
                (outcome = pass_event(link, now, &body)) == STOP) {
                outcome = pass_answer(link, now, &body);
                counter = &passed->answers;
            }
            if (outcome == FAILED)
                return FAILED;
            if (outcome == STOP)
                break;
        }
        ++*counter;
        p = body.end;
    }
    passed->pos = p - base;
    return start == base && p == end ? hand_over(link, data, passed->events, passed->answers)
                                     : STOP;
}

static PyObject *pass_answers(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "pass_answers(data, pos, max_frame, link, now)");
        return NULL;
    }
    struct passed passed = {start_of(args), 0, 0};
    if (passed.pos < 0)
        return NULL;
    Py_ssize_t max_frame = PyLong_AsSsize_t(args[2]);
    if (max_frame == -1 && PyErr_Occurred())
        return NULL;
    enum outcome outcome = pass_all(args[3], args[0], args[4], max_frame, &passed);
    if (outcome == FAILED)
        return NULL;
    if (outcome == PASSED)
        Py_RETURN_NONE;
    return Py_BuildValue("nnn", passed.pos, passed.events, passed.answers);
}

/* --- reads ---------------------------------------------------------------------------------- */

static long max_direct, timed_reads, short_read, answers_alone;

/* Count a read; -1 with an exception, else whether it is one to be timed. */
static int is_timed(struct slot *reads, PyObject *reader)
{
    if (!add(reads, reader, 1))
        return -1;
    long count = PyLong_AsLong(get(reads, reader));
    return count == -1 ? -1 : count % timed_reads == 0;
}

static int is_empty_list(PyObject *list)
{
    return list != NULL && PyList_CheckExact(list) && PyList_GET_SIZE(list) == 0;
}

/* The largest frame that a buffer takes; -1 if that is not known. */
static Py_ssize_t max_frame_of(PyObject *buffer)
{
    PyObject *value = buffer == NULL ? NULL : get(&buffer_max_frame, buffer);
    return value == NULL || !PyLong_CheckExact(value) ? -1 : PyLong_AsSsize_t(value);
}

static enum outcome forget(PyObject *returned)
{
    Py_XDECREF(returned);
    return returned == NULL ? FAILED : PASSED;
}

/* The twin of Client.feed for a chunk at whose start nothing is pending; STOP for all others. */
static enum outcome feed_client(PyObject *client, PyObject *data)
{
    PyObject *hub = get(&client_hub, client), *direct = get(&client_direct, client);
    Py_ssize_t max_frame = max_frame_of(get(&client_buffer, client));
    if (hub == NULL || direct == NULL || !PyDict_CheckExact(direct) || max_frame < 0 ||
        PyDict_GET_SIZE(direct) == 0 || !is_empty_list(get(&client_begun, client)) ||
        get(&client_authenticating, client) != Py_False)
        return PyErr_Occurred() ? FAILED : STOP;
    PyObject *stats = PyObject_GetAttr(hub, stats_name), *now = PyObject_GetAttr(hub, now_name);
    PyObject *limits = PyObject_GetAttr(hub, limits_name);
    PyObject *most = limits == NULL ? NULL : PyObject_GetAttr(limits, max_pending_name);
    Py_ssize_t max_pending = most == NULL ? -1 : PyLong_AsSsize_t(most), pos = 0;
    enum outcome outcome = stats == NULL || now == NULL || PyErr_Occurred() ||
                                   !add(&stats_bytes_from_client, stats, PyBytes_GET_SIZE(data))
                               ? FAILED
                               : PASSED;
    if (max_frame > max_direct)
        max_frame = max_direct;
    while (outcome == PASSED && pos < PyBytes_GET_SIZE(data))
        outcome = pass_request(client, stats, now, data, &pos, max_frame, max_pending);
    if (outcome == STOP)
        outcome = forget(PyObject_CallMethod(client, "rest", "On", data, pos));
    Py_XDECREF(most);
    Py_XDECREF(limits);
    Py_XDECREF(now);
    Py_XDECREF(stats);
    return outcome;
}

/* The twin of Link.feed for a chunk at whose start nothing is pending; STOP for all others. */
static enum outcome feed_link(PyObject *link, PyObject *data)
{
    PyObject *hub = get(&link_hub, link), *stats = get(&link_stats, link);
    PyObject *aliases = get(&link_aliases, link);
    Py_ssize_t max_frame = max_frame_of(get(&link_buffer, link));
    if (hub == NULL || stats == NULL || max_frame < 0 || aliases == NULL ||
        !PyDict_CheckExact(aliases) || PyDict_GET_SIZE(aliases) != 0 ||
        !is_empty_list(get(&link_begun, link)))
        return PyErr_Occurred() ? FAILED : STOP;
    PyObject *now = PyObject_GetAttr(hub, now_name);
    if (now == NULL || !add(&stats_bytes_from_replica, stats, PyBytes_GET_SIZE(data))) {
        Py_XDECREF(now);
        return FAILED;
    }
    struct passed passed = {0, 0, 0};
    enum outcome outcome = pass_all(link, data, now, max_frame, &passed);
    Py_DECREF(now);
    if (outcome != STOP)
        return outcome;
    return forget(PyObject_CallMethod(link, "rest", "Onnn", data, passed.pos, passed.events,
                                      passed.answers));
}

/* Have a client or a link take what was read: timed now and then, by itself or in Python. */
static enum outcome take(struct slot *reads, PyObject *reader, PyObject *taker, PyObject *data,
                         enum outcome (*feed)(PyObject *, PyObject *))
{
    int timed = is_timed(reads, reader);
    if (timed < 0)
        return FAILED;
    if (timed)
        return forget(PyObject_CallMethodOneArg(reader, timed_name, data));
    enum outcome outcome = feed(taker, data);
    return outcome == STOP ? forget(PyObject_CallMethodOneArg(taker, feed_name, data)) : outcome;
}

/* Check the arguments (reader, data: bytes). */
static int are_read(PyObject *const *args, Py_ssize_t count)
{
    if (count == 2 && PyBytes_CheckExact(args[1]))
        return 1;
    PyErr_SetString(PyExc_TypeError, "receive_...(reader, data: bytes)");
    return 0;
}

static PyObject *receive_requests(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    if (!are_read(args, count))
        return NULL;
    PyObject *reader = args[0], *data = args[1], *client = get(&reader_client, reader);
    if (client == Py_None)
        Py_RETURN_NONE;
    if (client == NULL) {
        PyErr_SetString(PyExc_TypeError, "no reader of a client");
        return NULL;
    }
    Py_INCREF(client);
    enum outcome outcome = take(&client_reads, reader, client, data, feed_client);
    if (outcome != FAILED && !is_empty_list(get(&client_begun, client)) &&
        get(&client_closed, client) == Py_False)
        outcome = forget(PyObject_CallMethodNoArgs(reader, acknowledge_name));
    Py_DECREF(client);
    if (outcome == FAILED)
        return NULL;
    Py_RETURN_NONE;
}

/* Whether the replica may be waiting for an acknowledgement. */
static int is_waiting(PyObject *link, PyObject *data)
{
    PyObject *alone = get(&link_answers_alone, link);
    return get(&link_sent, link) == Py_True && alone != NULL && PyLong_CheckExact(alone) &&
           PyLong_AsLong(alone) < answers_alone &&
           (PyBytes_GET_SIZE(data) < short_read || !is_empty_list(get(&link_begun, link))) &&
           get(&link_closed, link) == Py_False;
}

static PyObject *receive_answers(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    if (!are_read(args, count))
        return NULL;
    PyObject *reader = args[0], *data = args[1], *link = get(&reader_link, reader);
    if (link == NULL) {
        PyErr_SetString(PyExc_TypeError, "no reader of a link");
        return NULL;
    }
    Py_INCREF(link);
    enum outcome outcome = take(&link_reads, reader, link, data, feed_link);
    if (outcome != FAILED && is_waiting(link, data))
        outcome = fill(&link_sent, link, Py_False)
                      ? forget(PyObject_CallMethodNoArgs(reader, acknowledge_name))
                      : FAILED;
    Py_DECREF(link);
    if (outcome == FAILED)
        return NULL;
    Py_RETURN_NONE;
}

/* --- module --------------------------------------------------------------------------------- */

static PyObject *set_types(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *plain, *hooked, *prompt;
    if (!PyArg_ParseTuple(args, "O!O!O!", &PyType_Type, &plain, &PyType_Type, &hooked,
                          &PyType_Type, &prompt))
        return NULL;
    Py_XSETREF(prompt_type, (PyTypeObject *)Py_NewRef(prompt));
    Py_XSETREF(pending_type, (PyTypeObject *)Py_NewRef(plain));
    Py_XSETREF(hooked_type, (PyTypeObject *)Py_NewRef(hooked));
    Py_RETURN_NONE;
}

static PyObject *set_reading(PyObject *self, PyObject *args)
{
    (void)self;
    if (!PyArg_ParseTuple(args, "llll", &max_direct, &timed_reads, &short_read, &answers_alone))
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"pass_requests", (PyCFunction)(void (*)(void))pass_requests, METH_FASTCALL,
     "pass_requests(data, pos, max_frame, client, stats, now, max_pending) -> pos"},
    {"pass_answers", (PyCFunction)(void (*)(void))pass_answers, METH_FASTCALL,
     "pass_answers(data, pos, max_frame, link, now) -> (pos, events, answers)"},
    {"set_loud", set_loud, METH_O, "set_loud(names): event types that are not passed over."},
    {"set_types", set_types, METH_VARARGS,
     "set_types(pending, pending_hook, prompt): the classes of what is made here."},
    {"set_reading", set_reading, METH_VARARGS,
     "set_reading(max_direct_bytes, timed_reads, short_read_bytes, answers_alone)"},
    {NULL, NULL, 0, NULL},
};

/* A function that becomes a method where it is a class's attribute, as those in Python do. */
static PyMethodDef received[] = {
    {"receive_requests", (PyCFunction)(void (*)(void))receive_requests, METH_FASTCALL,
     "receive_requests(reader, data): take what was read from a client."},
    {"receive_answers", (PyCFunction)(void (*)(void))receive_answers, METH_FASTCALL,
     "receive_answers(reader, data): take what was read from a replica."},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_lane", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

static int add_method(PyObject *to, PyMethodDef *definition)
{
    PyObject *function = PyCFunction_New(definition, NULL);
    PyObject *method = function == NULL ? NULL : PyInstanceMethod_New(function);
    int added = method == NULL ? -1 : PyModule_AddObjectRef(to, definition->ml_name, method);
    Py_XDECREF(method);
    Py_XDECREF(function);
    return added;
}

PyMODINIT_FUNC PyInit__lane(void)
{
    static const struct {
        PyObject **name;
        const char *text;
    } names[] = {
        {&write_name, "write"},   {&allows_name, "allows"}, {&prompted_name, "prompted"},
        {&event_name, "event"},   {&feed_name, "feed"},     {&timed_name, "timed"},
        {&now_name, "now"},       {&stats_name, "stats"},   {&acknowledge_name, "acknowledge"},
        {&limits_name, "limits"}, {&max_pending_name, "max_pending"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((*names[i].name = PyUnicode_InternFromString(names[i].text)) == NULL)
            return NULL;
    if ((zero = PyLong_FromLong(0)) == NULL)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && (add_method(made, &received[0]) || add_method(made, &received[1])))
        Py_CLEAR(made);
    return made;
}
