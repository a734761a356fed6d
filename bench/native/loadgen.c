/*
 * A closed-loop load generator for the CLI's protocol: every connection keeps `outstanding`
 * requests under way, each on a session of its own, and checks every answer. A lost, duplicated,
 * reordered or unexpected message ends the run with an error: a figure is only worth something if
 * all the work behind it was done.
 *
 * It prints one JSON object: what was done in the measured window, the latency percentiles, and for
 * each watched process the CPU time it spent in that very window and its memory before the first
 * connection, when all were ready, and at the end.
 *
 * usage: COPILOT_CONNECTION_TOKEN=... loadgen --target HOST:PORT[,HOST:PORT...] [options]
 */
#include "wire.h"

#include <getopt.h>
#include <signal.h>
#ifdef HAVE_OPENSSL
#include <openssl/ssl.h>
#endif

enum { MAX_TARGETS = 64, MAX_WATCHED = 64, MAX_EVENTS = 256 };
enum { SETUP_PARALLEL = 64 };       /* connections being set up at once: a burst, not a flood */
enum { SLOW_READ_BYTES = 8 * 1024 }; /* a slow reader takes this much ... */
enum { SLOW_READ_EVERY_MS = 20 };    /* ... this often: 400 KB/s */
static const uint64_t STALL_NS = 15000000000u;  /* without any progress the run has failed */
static const uint64_t SETTLE_NS = 200000000u;   /* silence that ends the setup and the run */

enum work { WORK_REQUEST, WORK_STREAM, WORK_CONNECT, WORK_CREATE, WORK_IDLE };
static const char *const work_names[] = {"request", "stream", "connect", "create", "idle"};

static struct {
    struct sockaddr_in targets[MAX_TARGETS];
    size_t target_count;
    char token[MAX_TOKEN];
    enum work work;
    size_t connections, sessions, outstanding, slow;
    bool tls;
    size_t events, event_bytes, per_write;
    double warmup, seconds;
    pid_t watched[MAX_WATCHED];
    size_t watched_count;
} options = {.connections = 1, .sessions = 1, .outstanding = 1, .event_bytes = 350,
             .warmup = 0.5, .seconds = 2};

struct session {
    char id[37];
    bool busy, answered;
    size_t next_event;
    uint64_t request_id, started;
};

enum state { CONNECTING, AUTHENTICATING, CREATING, READY };

struct connection {
    int fd;
    enum state state;
    bool slow, waiting_to_write, paused;
#ifdef HAVE_OPENSSL
    SSL *tls;
    bool wants_input; /* a handshake goes on when something arrives, not when there is room */
#endif
    struct buffer in, out;
    struct session *sessions;
    size_t created, cursor, busy;
    uint64_t request_id, started; /* of connect and create requests */
};

/* Everything that is counted since the start; a window is the difference of two copies. */
struct counters {
    uint64_t requests, responses, events, idles, others, bytes_in, bytes_out;
};

static int poll_fd;
static struct connection *connections;
static size_t started_connections, ready_connections;
static uint64_t next_session, next_request = 1, last_input;
static struct counters count;
static bool running, recording;
static uint32_t run_tag;

/* --- latency histogram: 64 linear steps in each power of two, so within 1.6 % -------------- */

enum { STEP_BITS = 6, BUCKETS = 64 << STEP_BITS };
static uint64_t histogram[BUCKETS], histogram_count, histogram_sum, histogram_max;

static size_t bucket_of(uint64_t ns) {
    if (ns < 1u << STEP_BITS) return ns;
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - STEP_BITS;
    return ((size_t)(shift + 1) << STEP_BITS) + ((ns >> shift) & ((1u << STEP_BITS) - 1));
}

static double bucket_middle(size_t bucket) {
    if (bucket < 1u << STEP_BITS) return (double)bucket;
    unsigned shift = (unsigned)(bucket >> STEP_BITS) - 1;
    uint64_t low = ((1ull << STEP_BITS) + (bucket & ((1u << STEP_BITS) - 1))) << shift;
    return (double)low + (double)(1ull << shift) / 2;
}

static void record_latency(uint64_t ns) {
    if (!recording) return;
    histogram[bucket_of(ns)]++;
    histogram_count++;
    histogram_sum += ns;
    if (ns > histogram_max) histogram_max = ns;
}

static double percentile_us(double fraction) {
    uint64_t wanted = (uint64_t)(fraction * (double)histogram_count), seen = 0;
    for (size_t i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen > wanted) return bucket_middle(i) / 1000;
    }
    return (double)histogram_max / 1000;
}

/* --- watched processes ---------------------------------------------------------------------- */

static double cpu_seconds(pid_t pid) {
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) != 0)
        die("watched process %d is gone", (int)pid);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t memory_bytes(pid_t pid) {
    char path[64];
    unsigned long long total = 0, resident = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%llu %llu", &total, &resident) != 2)
        die("watched process %d is gone", (int)pid);
    fclose(file);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

struct sample {
    double cpu[MAX_WATCHED], own_cpu;
    uint64_t memory[MAX_WATCHED], time;
    struct counters count;
};

static struct sample take_sample(void) {
    struct sample s = {.time = now_ns(), .count = count, .own_cpu = cpu_seconds(getpid())};
    for (size_t i = 0; i < options.watched_count; i++) {
        s.cpu[i] = cpu_seconds(options.watched[i]);
        s.memory[i] = memory_bytes(options.watched[i]);
    }
    return s;
}

/* --- sockets -------------------------------------------------------------------------------- */

static void watch_socket(struct connection *c, int operation) {
    uint32_t events = (c->paused ? 0 : EPOLLIN) | (c->waiting_to_write ? EPOLLOUT : 0);
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poll_fd, operation, c->fd, &event) != 0) die("epoll: %s", strerror(errno));
}

#ifdef HAVE_OPENSSL
static SSL_CTX *tls_context;

static void tls_prepare(void) {
    tls_context = SSL_CTX_new(TLS_client_method());
    if (!tls_context) die("TLS cannot be set up");
    /* What is under test has a certificate made for this run: there is nobody to verify it. */
    SSL_CTX_set_verify(tls_context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE |
                                      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
}

static void tls_open(struct connection *c) {
    c->tls = SSL_new(tls_context);
    if (!c->tls || SSL_set_fd(c->tls, c->fd) != 1) die("TLS cannot be set up");
    SSL_set_connect_state(c->tls); /* the first read or write shakes hands */
}

/* Turn the outcome of a TLS call into that of a system call. */
static ssize_t tls_result(struct connection *c, int n) {
    if (n > 0) return n;
    int error = SSL_get_error(c->tls, n);
    if (error == SSL_ERROR_ZERO_RETURN) return 0;
    c->wants_input = error == SSL_ERROR_WANT_READ;
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
        die("TLS failed (%d)", error);
    errno = EAGAIN;
    return -1;
}
#endif

static ssize_t socket_send(struct connection *c, const void *data, size_t size) {
#ifdef HAVE_OPENSSL
    if (c->tls) return tls_result(c, SSL_write(c->tls, data, size > INT32_MAX ? INT32_MAX : (int)size));
#endif
    return send(c->fd, data, size, MSG_NOSIGNAL);
}

static ssize_t socket_receive(struct connection *c, char *room, size_t size) {
#ifdef HAVE_OPENSSL
    if (c->tls) { /* a record at a time; as many as there is room for */
        size_t got = 0;
        while (got < size) {
            ssize_t n = tls_result(c, SSL_read(c->tls, room + got, (int)(size - got)));
            if (n <= 0) return got > 0 ? (ssize_t)got : n;
            got += (size_t)n;
        }
        return (ssize_t)got;
    }
#endif
    return recv(c->fd, room, size, 0);
}

static bool waits_for_room(const struct connection *c) {
#ifdef HAVE_OPENSSL
    if (c->tls && c->wants_input) return false;
#endif
    return buffer_used(&c->out) > 0;
}

static void flush(struct connection *c) {
    while (buffer_used(&c->out) > 0) {
        ssize_t n = socket_send(c, c->out.data + c->out.start, buffer_used(&c->out));
        if (n < 0 && errno != EAGAIN) die("write failed: %s", strerror(errno));
        if (n < 0) break;
        c->out.start += (size_t)n;
        count.bytes_out += (uint64_t)n;
    }
    bool wait = waits_for_room(c);
    if (wait != c->waiting_to_write) {
        c->waiting_to_write = wait;
        watch_socket(c, EPOLL_CTL_MOD);
    }
}


static void connection_open(struct connection *c) {
    const struct sockaddr_in *target =
        &options.targets[(size_t)(c - connections) % options.target_count];
    c->state = CONNECTING;
    c->started = now_ns();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket: %s", strerror(errno));
    set_nodelay(c->fd);
    if (c->slow) { /* so that what it does not read waits in what is under test */
        int size = SLOW_READ_BYTES;
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    }
    if (connect(c->fd, (const struct sockaddr *)target, sizeof *target) != 0 &&
        errno != EINPROGRESS)
        die("connect: %s", strerror(errno));
#ifdef HAVE_OPENSSL
    if (options.tls) tls_open(c);
#endif
    c->waiting_to_write = true;
    watch_socket(c, EPOLL_CTL_ADD);
}

static void connection_close(struct connection *c) {
#ifdef HAVE_OPENSSL
    if (c->tls) {
        SSL_shutdown(c->tls);
        SSL_free(c->tls);
        c->tls = NULL;
    }
#endif
    close(c->fd);
    c->fd = -1;
    buffer_free(&c->in);
    buffer_free(&c->out);
}

/* --- requests ------------------------------------------------------------------------------- */

static void send_connect(struct connection *c) {
    c->state = AUTHENTICATING;
    c->request_id = next_request++;
    frame_printf(&c->out,
                 "{\"jsonrpc\":\"2.0\",\"id\":%llu,\"method\":\"connect\",\"params\":"
                 "{\"supportedTaskKinds\":[\"agent\",\"client\",\"shell\"],\"token\":\"%s\"}}",
                 (unsigned long long)c->request_id, options.token);
    count.requests++;
    flush(c);
}

static void new_session_id(char out[37]) {
    snprintf(out, 37, "%08x-0000-4000-8000-%012llx", run_tag, (unsigned long long)next_session++);
}

static void send_create(struct connection *c, const char *id) {
    c->request_id = next_request++;
    c->started = now_ns();
    frame_printf(&c->out,
                 "{\"jsonrpc\":\"2.0\",\"id\":%llu,\"method\":\"session.create\",\"params\":"
                 "{\"model\":\"stub\",\"toolFilterPrecedence\":\"excluded\",\"requestPermission\":true,"
                 "\"requestElicitation\":false,\"requestExitPlanMode\":false,"
                 "\"requestAutoModeSwitch\":false,\"streaming\":true,"
                 "\"includeSubAgentStreamingEvents\":true,\"envValueMode\":\"direct\","
                 "\"sessionId\":\"%s\"}}",
                 (unsigned long long)c->request_id, id);
    count.requests++;
    flush(c);
}

static void send_work(struct connection *c) {
    /* Answers of different replicas overtake one another, so the next in turn may still be busy;
     * one is free, because fewer requests are under way than there may be. */
    while (c->sessions[c->cursor].busy) c->cursor = (c->cursor + 1) % options.sessions;
    struct session *s = &c->sessions[c->cursor];
    c->cursor = (c->cursor + 1) % options.sessions;
    s->busy = true;
    s->answered = false;
    s->next_event = 0;
    s->request_id = next_request * options.sessions + (uint64_t)(s - c->sessions);
    next_request++;
    s->started = now_ns();
    c->busy++;
    count.requests++;
    if (options.work == WORK_REQUEST)
        frame_printf(&c->out,
                     "{\"jsonrpc\":\"2.0\",\"id\":%llu,\"method\":\"session.getMessages\",\"params\":"
                     "{\"sessionId\":\"%s\"}}",
                     (unsigned long long)s->request_id, s->id);
    else
        frame_printf(&c->out,
                     "{\"jsonrpc\":\"2.0\",\"id\":%llu,\"method\":\"session.send\",\"params\":"
                     "{\"sessionId\":\"%s\",\"prompt\":\"events=%zu bytes=%zu per_write=%zu\"}}",
                     (unsigned long long)s->request_id, s->id, options.events, options.event_bytes,
                     options.per_write);
}

static void keep_busy(struct connection *c) {
    char id[37];
    if (!running) return;
    switch (options.work) {
    case WORK_CONNECT:
        connection_open(c);
        break;
    case WORK_CREATE:
        new_session_id(id);
        send_create(c, id);
        break;
    case WORK_REQUEST:
    case WORK_STREAM:
        while (c->busy < options.outstanding) send_work(c);
        flush(c);
        break;
    case WORK_IDLE:
        break;
    }
}

/* --- answers -------------------------------------------------------------------------------- */

static uint64_t number(struct slice s) {
    uint64_t value = 0;
    for (size_t i = 0; i < s.size; i++) {
        if (s.data[i] < '0' || s.data[i] > '9') return UINT64_MAX;
        value = value * 10 + (uint64_t)(s.data[i] - '0');
    }
    return s.size ? value : UINT64_MAX;
}

__attribute__((noreturn)) static void unexpected(const char *what, struct slice body) {
    die("%s: %.*s", what, (int)(body.size < 600 ? body.size : 600), body.data);
}

static void on_ready(struct connection *c) {
    c->state = READY;
    ready_connections++;
}

static void finish_if_done(struct connection *c, struct session *s) {
    bool idle_due = options.work == WORK_STREAM;
    if (!s->answered || (idle_due && s->next_event != options.events + 1)) return;
    s->busy = false;
    c->busy--;
    if (!c->slow) record_latency(now_ns() - s->started);
    keep_busy(c);
}

static void on_response(struct connection *c, struct slice id, struct slice body) {
    uint64_t value = number(id);
    if (json_member(body, "result").size == 0) unexpected("request failed", body);
    count.responses++;
    if (c->state != READY || options.work == WORK_CREATE) {
        if (value != c->request_id) unexpected("answer to nothing that was asked", body);
        c->request_id = 0;
        if (c->state == AUTHENTICATING) {
            if (options.work == WORK_CONNECT && running) {
                record_latency(now_ns() - c->started);
                c->state = READY;
                return; /* the caller closes and opens the next */
            }
            c->state = CREATING;
        } else if (c->state == CREATING) {
            c->created++;
        } else {
            record_latency(now_ns() - c->started);
            keep_busy(c);
            return;
        }
        bool needs_sessions = options.work == WORK_REQUEST || options.work == WORK_STREAM;
        if (needs_sessions && c->created < options.sessions) {
            new_session_id(c->sessions[c->created].id);
            send_create(c, c->sessions[c->created].id);
        } else {
            on_ready(c);
        }
        return;
    }
    struct session *s = &c->sessions[value % options.sessions];
    if (!s->busy || s->answered || s->request_id != value)
        unexpected("answer to nothing that was asked", body);
    s->answered = true;
    finish_if_done(c, s);
}

static void on_event(struct connection *c, struct slice params, struct slice body) {
    struct slice id = json_text(params, "sessionId"), event = json_member(params, "event"),
                 type = json_text(event, "type");
    bool delta = slice_is(type, "assistant.message_delta");
    if (!delta && !slice_is(type, "session.idle")) {
        count.others++;
        return;
    }
    struct session *s = NULL;
    for (size_t i = 0; i < options.sessions; i++) { /* the one last asked comes first */
        struct session *at =
            &c->sessions[(c->cursor + 2 * options.sessions - 1 - i) % options.sessions];
        if (slice_is(id, at->id)) {
            s = at;
            break;
        }
    }
    if (!s || !s->busy) unexpected("event of a session that is not busy", body);
    if (delta) {
        struct slice text = json_text(json_member(event, "data"), "deltaContent");
        if (text.size < 7 || number((struct slice){text.data + 1, 6}) != s->next_event)
            unexpected("event lost, repeated or out of order", body);
        count.events++;
    } else {
        if (s->next_event != options.events) unexpected("events lost before the end", body);
        count.idles++;
    }
    s->next_event++;
    finish_if_done(c, s);
}

static void on_frame(struct connection *c, struct slice body) {
    struct slice method = json_text(body, "method");
    if (method.size == 0)
        on_response(c, json_member(body, "id"), body);
    else if (slice_is(method, "session.event"))
        on_event(c, json_member(body, "params"), body);
    else if (slice_is(method, "session.lifecycle"))
        count.others++;
    else
        unexpected("message of an unknown kind", body);
}

/* Read once and act on each complete frame. */
static void read_frames(struct connection *c) {
    struct buffer *in = input_for(&c->in);
    char *room = buffer_reserve(in, READ_CHUNK);
    size_t size = in->capacity - in->end;
    bool slowly = c->slow && running;
    ssize_t n = socket_receive(c, room, slowly && size > SLOW_READ_BYTES ? SLOW_READ_BYTES : size);
    int error = errno;
    if (options.tls && buffer_used(&c->out) > 0) flush(c); /* it waited for the handshake */
    if (n < 0 && (error == EAGAIN || error == EINTR)) return;
    if (n < 0) die("connection broke: %s", strerror(error));
    if (n == 0) die("connection closed by the other side");
    in->end += (size_t)n;
    count.bytes_in += (uint64_t)n;
    last_input = now_ns();
    struct slice body;
    enum frame_result result;
    while ((result = frame_next(in, &body)) == FRAME_COMPLETE) on_frame(c, body);
    if (result == FRAME_BROKEN) die("broken frame header");
    input_keep(&c->in, in);
    if (options.work == WORK_CONNECT && running && c->state == READY) {
        connection_close(c);
        keep_busy(c);
    } else if (slowly) {
        c->paused = true;
        watch_socket(c, EPOLL_CTL_MOD);
    }
}

static void on_readable(struct connection *c) {
    read_frames(c);
#ifdef HAVE_OPENSSL
    /* What the library has taken off the socket and not handed out wakes nobody. */
    while (c->tls && SSL_pending(c->tls) > 0) read_frames(c);
#endif
}

static void on_writable(struct connection *c) {
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) die("connect: %s", strerror(error));
        send_connect(c);
        if (!c->waiting_to_write) return;
    }
    flush(c);
    if (!waits_for_room(c) && c->waiting_to_write) {
        c->waiting_to_write = false;
        watch_socket(c, EPOLL_CTL_MOD);
    }
}

/* --- the run -------------------------------------------------------------------------------- */

static void resume_slow_readers(bool all) {
    static uint64_t last;
    if (!all && now_ns() - last < SLOW_READ_EVERY_MS * 1000000ull) return;
    last = now_ns();
    for (size_t i = 0; i < options.slow; i++)
        if (connections[i].paused) {
            connections[i].paused = false;
            watch_socket(&connections[i], EPOLL_CTL_MOD);
        }
}

static void poll_once(int timeout_ms) {
    struct epoll_event events[MAX_EVENTS];
    if (options.slow > 0) {
        resume_slow_readers(!running);
        if (timeout_ms > SLOW_READ_EVERY_MS) timeout_ms = SLOW_READ_EVERY_MS;
    }
    int n = epoll_wait(poll_fd, events, MAX_EVENTS, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        int fd = c->fd;
        if (events[i].events & EPOLLOUT) on_writable(c);
        if (c->fd == fd && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(c);
    }
    bool waiting = !(running && options.work == WORK_IDLE);
    if (waiting && now_ns() - last_input > STALL_NS)
        die("stalled: %zu of %zu connections ready, %llu requests, %llu answers",
            ready_connections, options.connections, (unsigned long long)count.requests,
            (unsigned long long)count.responses);
}

static void poll_for(double seconds) {
    uint64_t end = now_ns() + (uint64_t)(seconds * 1e9), now;
    while ((now = now_ns()) < end) poll_once((int)((end - now) / 1000000) + 1);
}

static void settle(void) {
    last_input = now_ns();
    while (now_ns() - last_input < SETTLE_NS) poll_once(20);
}

static void setup(void) {
    last_input = now_ns();
    while (ready_connections < options.connections) {
        while (started_connections < options.connections &&
               started_connections - ready_connections < SETUP_PARALLEL)
            connection_open(&connections[started_connections++]);
        poll_once(100);
    }
    settle();
}

static bool anything_busy(void) {
    for (size_t i = 0; i < options.connections; i++)
        if (connections[i].busy > 0 || connections[i].request_id != 0) return true;
    return false;
}

static void drain(void) {
    running = false;
    resume_slow_readers(true);
    while (anything_busy()) poll_once(100);
    settle();
    uint64_t wanted = options.work == WORK_STREAM ? count.idles * options.events : 0;
    if (count.responses != count.requests || count.events != wanted)
        die("messages do not add up: %llu requests, %llu answers, %llu of %llu events",
            (unsigned long long)count.requests, (unsigned long long)count.responses,
            (unsigned long long)count.events, (unsigned long long)wanted);
}

static void print_report(const struct sample *before, const struct sample *ready,
                         const struct sample *start, const struct sample *end,
                         const struct sample *last) {
    struct counters a = start->count, b = end->count;
    uint64_t requests = b.requests - a.requests, responses = b.responses - a.responses,
             events = b.events - a.events + b.idles - a.idles, others = b.others - a.others;
    if (others > 0 && (options.work == WORK_REQUEST || options.work == WORK_STREAM))
        die("%llu messages nobody asked for", (unsigned long long)others);
    printf("{\"seconds\":%.6f,\"requests\":%llu,\"responses\":%llu,\"events\":%llu,\"others\":%llu,"
           "\"messages\":%llu,\"bytes_in\":%llu,\"bytes_out\":%llu,",
           (double)(end->time - start->time) / 1e9, (unsigned long long)requests,
           (unsigned long long)responses, (unsigned long long)events, (unsigned long long)others,
           (unsigned long long)(requests + responses + events + others),
           (unsigned long long)(b.bytes_in - a.bytes_in),
           (unsigned long long)(b.bytes_out - a.bytes_out));
    printf("\"latency_us\":");
    if (histogram_count > 0)
        printf("{\"count\":%llu,\"mean\":%.2f,\"p50\":%.2f,\"p99\":%.2f,\"p999\":%.2f,\"max\":%.2f},",
               (unsigned long long)histogram_count,
               (double)histogram_sum / (double)histogram_count / 1000, percentile_us(0.5),
               percentile_us(0.99), percentile_us(0.999), (double)histogram_max / 1000);
    else
        printf("null,");
    printf("\"loadgen_cpu_seconds\":%.6f,\"watched\":[", end->own_cpu - start->own_cpu);
    for (size_t i = 0; i < options.watched_count; i++)
        printf("%s{\"pid\":%d,\"cpu_seconds\":%.6f,\"memory_before\":%llu,\"memory_ready\":%llu,"
               "\"memory_after\":%llu}",
               i ? "," : "", (int)options.watched[i], end->cpu[i] - start->cpu[i],
               (unsigned long long)before->memory[i], (unsigned long long)ready->memory[i],
               (unsigned long long)last->memory[i]);
    printf("],\"totals\":{\"requests\":%llu,\"responses\":%llu,\"events\":%llu,\"idles\":%llu,"
           "\"sessions\":%llu}}\n",
           (unsigned long long)last->count.requests, (unsigned long long)last->count.responses,
           (unsigned long long)last->count.events, (unsigned long long)last->count.idles,
           (unsigned long long)next_session);
}

static void parse_targets(char *list) {
    for (char *item = strtok(list, ","); item; item = strtok(NULL, ",")) {
        char *colon = strrchr(item, ':');
        if (!colon || options.target_count == MAX_TARGETS) die("bad --target %s", item);
        *colon = 0;
        struct sockaddr_in *target = &options.targets[options.target_count++];
        target->sin_family = AF_INET;
        target->sin_port = htons((uint16_t)atoi(colon + 1));
        if (inet_pton(AF_INET, item, &target->sin_addr) != 1) die("bad address %s", item);
    }
}

static void parse_options(int argc, char **argv) {
    static const struct option known[] = {
        {"target", 1, 0, 't'},   {"work", 1, 0, 'w'},        {"connections", 1, 0, 'c'},
        {"sessions", 1, 0, 's'}, {"outstanding", 1, 0, 'o'}, {"slow", 1, 0, 'l'},
        {"events", 1, 0, 'e'},   {"event-bytes", 1, 0, 'b'}, {"per-write", 1, 0, 'p'},
        {"warmup", 1, 0, 'u'},   {"seconds", 1, 0, 'd'},     {"watch", 1, 0, 'p' + 256},
        {"tls", 0, 0, 'T'},
        {0, 0, 0, 0}};
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        size_t value = optarg ? strtoul(optarg, NULL, 10) : 0;
        switch (option) {
        case 't': parse_targets(optarg); break;
        case 'w':
            options.work = WORK_REQUEST;
            while (strcmp(work_names[options.work], optarg) != 0)
                if (options.work++ == WORK_IDLE) die("unknown --work %s", optarg);
            break;
        case 'c': options.connections = value; break;
        case 's': options.sessions = value; break;
        case 'o': options.outstanding = value; break;
        case 'l': options.slow = value; break;
        case 'e': options.events = value; break;
        case 'b': options.event_bytes = value; break;
        case 'p': options.per_write = value; break;
        case 'u': options.warmup = strtod(optarg, NULL); break;
        case 'd': options.seconds = strtod(optarg, NULL); break;
        case 'T': options.tls = true; break;
        case 'p' + 256:
            for (char *pid = strtok(optarg, ","); pid; pid = strtok(NULL, ",")) {
                if (options.watched_count == MAX_WATCHED) die("too many processes to watch");
                options.watched[options.watched_count++] = atoi(pid);
            }
            break;
        default: exit(2);
        }
    }
    if (options.target_count == 0) die("--target is missing");
    if (options.connections == 0 || options.sessions == 0 || options.outstanding == 0 ||
        options.outstanding > options.sessions || options.slow > options.connections)
        die("--connections, --sessions, --outstanding and --slow do not fit together");
#ifdef HAVE_OPENSSL
    if (options.tls) tls_prepare();
    if (options.tls && options.slow > 0) die("slow readers speak no TLS");
#else
    if (options.tls) die("built without OpenSSL");
#endif
    const char *secret = getenv("COPILOT_CONNECTION_TOKEN");
    snprintf(options.token, sizeof options.token, "%s", secret ? secret : "");
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    raise_file_limit();
    run_tag = (uint32_t)(now_ns() >> 10) ^ (uint32_t)getpid();
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc(options.connections, sizeof *connections);
    if (!connections) die("out of memory");
    for (size_t i = 0; i < options.connections; i++) {
        connections[i].fd = -1;
        connections[i].slow = i < options.slow;
        connections[i].sessions = calloc(options.sessions, sizeof(struct session));
        if (!connections[i].sessions) die("out of memory");
    }

    struct sample before = take_sample();
    setup();
    struct sample ready = take_sample();
    running = true;
    if (options.work == WORK_CONNECT)
        for (size_t i = 0; i < options.connections; i++) connection_close(&connections[i]);
    for (size_t i = 0; i < options.connections; i++) keep_busy(&connections[i]);
    poll_for(options.warmup);
    recording = true;
    struct sample start = take_sample();
    poll_for(options.seconds);
    struct sample end = take_sample();
    recording = false;
    drain();
    struct sample last = take_sample();
    print_report(&before, &ready, &start, &end, &last);
    return 0;
}
