/*
 * A stand-in for a headless Copilot CLI that costs next to nothing, so that a benchmark measures
 * what stands in front of it. It speaks the part of the CLI's protocol that a proxy and the load
 * generator meet, in the CLI's own message forms and key order, and does no work: a prompt of the
 * form "events=N bytes=B per_write=W" is answered by N assistant.message_delta events of B bytes
 * each, flushed every W of them (0: together), then session.idle.
 *
 * usage: COPILOT_CONNECTION_TOKEN=... stub_replica PORT     (0 picks one; printed like the CLI does)
 */
#include "wire.h"

#define VERSION "1.0.102"
#define STAMP "2026-01-01T00:00:00.000Z"

enum { MAX_ID = 256, MAX_EVENTS = 256 };

struct connection {
    int fd;
    bool authenticated, waiting_to_write;
    struct buffer in, out;
    size_t index;       /* in `connections` */
    size_t attachments; /* sessions it is attached to */
};

struct session {
    char id[MAX_ID];
    bool used; /* a prompt was sent: it would be in the CLI's journal */
    struct connection **attached;
    size_t attached_count, attached_capacity;
    struct session *next; /* in the same hash bucket */
};

static int poll_fd;
static char token[MAX_TOKEN];
static struct connection **connections;
static size_t connection_count, connection_capacity;
static struct session *buckets[1 << 16];
static uint64_t next_uuid = 1;

/* --- sessions ------------------------------------------------------------------------------- */

static struct session **session_slot(struct slice id) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < id.size; i++) hash = (hash ^ (unsigned char)id.data[i]) * 16777619u;
    struct session **slot = &buckets[hash & 0xffff];
    while (*slot && !slice_is(id, (*slot)->id)) slot = &(*slot)->next;
    return slot;
}

static void session_attach(struct session *s, struct connection *c) {
    for (size_t i = 0; i < s->attached_count; i++)
        if (s->attached[i] == c) return;
    if (s->attached_count == s->attached_capacity) {
        s->attached_capacity = s->attached_capacity ? 2 * s->attached_capacity : 1;
        s->attached = realloc(s->attached, s->attached_capacity * sizeof *s->attached);
        if (!s->attached) die("out of memory");
    }
    s->attached[s->attached_count++] = c;
    c->attachments++;
}

static void session_detach(struct session *s, struct connection *c) {
    for (size_t i = 0; i < s->attached_count; i++) {
        if (s->attached[i] != c) continue;
        s->attached[i] = s->attached[--s->attached_count];
        c->attachments--;
        return;
    }
}

/* --- writing -------------------------------------------------------------------------------- */

static void connection_flush(struct connection *c) {
    while (buffer_used(&c->out) > 0) {
        ssize_t n = send(c->fd, c->out.data + c->out.start, buffer_used(&c->out), MSG_NOSIGNAL);
        if (n < 0) break; /* a full socket waits; a broken one is seen when it is read */
        c->out.start += (size_t)n;
    }
    bool wait = buffer_used(&c->out) > 0;
    if (wait != c->waiting_to_write) {
        struct epoll_event event = {.events = EPOLLIN | (wait ? EPOLLOUT : 0), .data.ptr = c};
        epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &event);
        c->waiting_to_write = wait;
    }
}

static void new_uuid(char out[37]) {
    snprintf(out, 37, "00000000-0000-4000-8000-%012llx", (unsigned long long)next_uuid++);
}

static void broadcast_lifecycle(const char *type, const struct session *s) {
    bool deleted = strcmp(type, "session.deleted") == 0;
    for (size_t i = 0; i < connection_count; i++) {
        if (!connections[i]->authenticated) continue;
        frame_printf(&connections[i]->out,
                     "{\"jsonrpc\":\"2.0\",\"method\":\"session.lifecycle\",\"params\":{\"type\":\"%s\","
                     "\"sessionId\":\"%s\"%s}}",
                     type, s->id,
                     deleted ? "" : ",\"metadata\":{\"startTime\":\"" STAMP "\",\"modifiedTime\":\"" STAMP "\"}");
    }
}

static void flush_all(void) {
    for (size_t i = 0; i < connection_count; i++)
        if (buffer_used(&connections[i]->out) > 0) connection_flush(connections[i]);
}

static void send_event(struct session *s, const char *type, const char *data, bool ephemeral) {
    char id[37];
    new_uuid(id);
    for (size_t i = 0; i < s->attached_count; i++)
        frame_printf(&s->attached[i]->out,
                     "{\"jsonrpc\":\"2.0\",\"method\":\"session.event\",\"params\":{\"sessionId\":\"%s\","
                     "\"event\":{\"type\":\"%s\",\"data\":%s,%s\"id\":\"%s\",\"timestamp\":\"" STAMP
                     "\",\"parentId\":null}}}",
                     s->id, type, data, ephemeral ? "\"ephemeral\":true," : "", id);
}

/* One delta frame is composed once; its number and its id are then patched for each event. */
static void send_burst(struct session *s, size_t count, size_t bytes, size_t per_write) {
    static struct buffer frame;
    char message[37], id[37];
    new_uuid(message);
    frame.start = frame.end = 0;
    int head = snprintf(NULL, 0,
                        "{\"jsonrpc\":\"2.0\",\"method\":\"session.event\",\"params\":{\"sessionId\":\"%s\","
                        "\"event\":{\"type\":\"assistant.message_delta\",\"data\":{\"messageId\":\"%s\","
                        "\"deltaContent\":\"#",
                        s->id, message);
    char tail[256];
    int tail_size = snprintf(tail, sizeof tail,
                             "\"},\"ephemeral\":true,\"id\":\"%s\",\"timestamp\":\"" STAMP
                             "\",\"parentId\":null}}}",
                             message);
    size_t fixed = (size_t)head + 6 + (size_t)tail_size;
    size_t padding = bytes > fixed ? bytes - fixed : 0;
    char *text = malloc(padding + 1);
    if (!text) die("out of memory");
    for (size_t i = 0; i < padding; i++) text[i] = "lorem ipsum dolor sit amet "[i % 27];
    text[padding] = 0;
    frame_printf(&frame,
                 "{\"jsonrpc\":\"2.0\",\"method\":\"session.event\",\"params\":{\"sessionId\":\"%s\","
                 "\"event\":{\"type\":\"assistant.message_delta\",\"data\":{\"messageId\":\"%s\","
                 "\"deltaContent\":\"#%06d%s%s",
                 s->id, message, 0, text, tail);
    free(text);
    size_t size = buffer_used(&frame);
    size_t number_at = size - (size_t)tail_size - padding - 6;
    size_t id_at = size - (size_t)tail_size + strlen("\"},\"ephemeral\":true,\"id\":\"");
    for (size_t i = 0; i < count; i++) {
        char number[16];
        snprintf(number, sizeof number, "%06zu", i);
        new_uuid(id);
        memcpy(frame.data + number_at, number, 6);
        memcpy(frame.data + id_at, id, 36);
        for (size_t k = 0; k < s->attached_count; k++)
            buffer_append(&s->attached[k]->out, frame.data, size);
        if (per_write && (i + 1) % per_write == 0)
            for (size_t k = 0; k < s->attached_count; k++) connection_flush(s->attached[k]);
    }
}

/* --- answering ------------------------------------------------------------------------------ */

static void reply(struct connection *c, struct slice id, const char *result) {
    frame_printf(&c->out, "{\"jsonrpc\":\"2.0\",\"id\":%.*s,\"result\":%s}", (int)id.size, id.data,
                 result);
}

static void reply_error(struct connection *c, struct slice id, int code, const char *message) {
    frame_printf(&c->out, "{\"jsonrpc\":\"2.0\",\"id\":%.*s,\"error\":{\"code\":%d,\"message\":\"%s\"}}",
                 (int)id.size, id.data, code, message);
}

static void session_start_event(const struct session *s, char *out, size_t size) {
    snprintf(out, size,
             "{\"sessionId\":\"%s\",\"version\":1,\"producer\":\"copilot-agent\","
             "\"copilotVersion\":\"" VERSION "\",\"startTime\":\"" STAMP "\",\"selectedModel\":\"stub\","
             "\"contextTier\":null,\"context\":{\"cwd\":\"/\"},\"remoteSteerable\":false,"
             "\"alreadyInUse\":false}",
             s->id);
}

static void reply_session(struct connection *c, struct slice id, const struct session *s) {
    frame_printf(&c->out,
                 "{\"jsonrpc\":\"2.0\",\"id\":%.*s,\"result\":{\"sessionId\":\"%s\",\"nativeSessionId\":\"%s\","
                 "\"startTime\":\"" STAMP "\",\"isRemote\":false,\"mode\":\"interactive\","
                 "\"workspacePath\":\"/stub/session-state/%s\",\"capabilities\":{\"ui\":{\"elicitation\":"
                 "false,\"mcpApps\":false,\"canvases\":false},\"extensions\":false},\"modelState\":"
                 "{\"modelId\":\"stub\"}}}",
                 (int)id.size, id.data, s->id, s->id, s->id);
}

static void on_create(struct connection *c, struct slice id, struct slice wanted) {
    char generated[37];
    if (wanted.size == 0) {
        new_uuid(generated);
        wanted = (struct slice){generated, 36};
    }
    if (wanted.size >= MAX_ID) {
        reply_error(c, id, -32603, "Request session.create failed with message: Invalid session id");
        return;
    }
    struct session **slot = session_slot(wanted);
    if (!*slot) {
        *slot = calloc(1, sizeof **slot);
        if (!*slot) die("out of memory");
        memcpy((*slot)->id, wanted.data, wanted.size);
    }
    struct session *s = *slot;
    char data[1024];
    session_attach(s, c);
    broadcast_lifecycle("session.created", s);
    reply_session(c, id, s);
    session_start_event(s, data, sizeof data);
    send_event(s, "session.start", data, false);
    broadcast_lifecycle("session.updated", s);
    broadcast_lifecycle("session.created", s);
    flush_all();
}

static void on_delete(struct connection *c, struct slice id, struct slice session_id) {
    struct session **slot = session_slot(session_id), *s = *slot;
    if (!s) {
        frame_printf(&c->out,
                     "{\"jsonrpc\":\"2.0\",\"id\":%.*s,\"result\":{\"success\":false,\"error\":"
                     "\"Session file not found for %.*s\"}}",
                     (int)id.size, id.data, (int)session_id.size, session_id.data);
        return;
    }
    broadcast_lifecycle("session.deleted", s);
    reply(c, id, "{\"success\":true}");
    while (s->attached_count > 0) session_detach(s, s->attached[0]);
    *slot = s->next;
    free(s->attached);
    free(s);
    flush_all();
}

static void on_list(struct connection *c, struct slice id) {
    struct buffer list = {0};
    buffer_append(&list, "{\"sessions\":[", 13);
    for (size_t i = 0; i < sizeof buckets / sizeof *buckets; i++)
        for (struct session *s = buckets[i]; s; s = s->next) {
            if (!s->used) continue;
            char entry[MAX_ID + 256];
            int n = snprintf(entry, sizeof entry,
                             "%s{\"sessionId\":\"%s\",\"startTime\":\"" STAMP "\",\"modifiedTime\":\"" STAMP
                             "\",\"isRemote\":false,\"isDetached\":false,\"summary\":\"stub\","
                             "\"name\":\"stub\",\"clientName\":\"sdk\",\"context\":{\"cwd\":\"/\"}}",
                             list.end > 13 ? "," : "", s->id);
            buffer_append(&list, entry, (size_t)n);
        }
    buffer_append(&list, "]}", 3);
    reply(c, id, list.data);
    buffer_free(&list);
}

static void on_send(struct connection *c, struct slice id, struct session *s, struct slice prompt) {
    char text[128] = "", message[37];
    size_t count = 0, bytes = 0, per_write = 0;
    if (prompt.size < sizeof text) {
        memcpy(text, prompt.data, prompt.size);
        text[prompt.size] = 0;
    }
    sscanf(text, "events=%zu bytes=%zu per_write=%zu", &count, &bytes, &per_write);
    s->used = true;
    new_uuid(message);
    frame_printf(&c->out, "{\"jsonrpc\":\"2.0\",\"id\":%.*s,\"result\":{\"messageId\":\"%s\"}}",
                 (int)id.size, id.data, message);
    send_burst(s, count, bytes, per_write);
    send_event(s, "session.idle", "{\"mode\":\"interactive\"}", true);
    for (size_t i = 0; i < s->attached_count; i++) connection_flush(s->attached[i]);
}

static void on_connect(struct connection *c, struct slice id, struct slice params) {
    struct slice given = json_text(params, "token");
    if (token[0] && !slice_is(given, token)) {
        reply_error(c, id, -32002, "AUTHENTICATION_FAILED");
        return;
    }
    struct slice kinds = json_member(params, "supportedTaskKinds");
    bool client = kinds.size && memmem(kinds.data, kinds.size, "\"client\"", 8);
    c->authenticated = true;
    frame_printf(&c->out,
                 "{\"jsonrpc\":\"2.0\",\"id\":%.*s,\"result\":{\"ok\":true,\"protocolVersion\":3,"
                 "\"version\":\"" VERSION "\",\"taskKinds\":[\"agent\",\"shell\"%s]}}",
                 (int)id.size, id.data, client ? ",\"client\"" : "");
}

static void on_session_method(struct connection *c, struct slice id, struct slice method,
                              struct slice params) {
    struct slice session_id = json_text(params, "sessionId");
    struct session *s = *session_slot(session_id);
    if (slice_is(method, "session.detach") || slice_is(method, "session.destroy")) {
        if (s) session_detach(s, c);
        reply(c, id, "{\"success\":true}");
    } else if (!s) {
        char text[MAX_ID + 128];
        snprintf(text, sizeof text, "Request %.*s failed with message: Session not found: %.*s",
                 (int)method.size, method.data, (int)session_id.size, session_id.data);
        reply_error(c, id, -32603, text);
    } else if (slice_is(method, "session.send")) {
        on_send(c, id, s, json_text(params, "prompt"));
    } else if (slice_is(method, "session.getMessages")) {
        char data[1024], result[1536];
        session_start_event(s, data, sizeof data);
        snprintf(result, sizeof result,
                 "{\"events\":[{\"type\":\"session.start\",\"data\":%s,\"id\":\"%s\",\"timestamp\":\"" STAMP
                 "\",\"parentId\":null}]}",
                 data, "00000000-0000-4000-8000-000000000000");
        reply(c, id, result);
    } else if (slice_is(method, "session.metadata.isProcessing")) {
        reply(c, id, "{\"processing\":false}");
    } else if (slice_is(method, "session.resume")) {
        session_attach(s, c);
        reply_session(c, id, s);
    } else {
        char text[128];
        snprintf(text, sizeof text, "Unhandled method %.*s", (int)method.size, method.data);
        reply_error(c, id, -32601, text);
    }
}

static void on_frame(struct connection *c, struct slice body) {
    struct slice id = json_member(body, "id"), method = json_text(body, "method"),
                 params = json_member(body, "params");
    if (id.size == 0 || method.size == 0) return; /* notifications and answers: the CLI ignores them */
    if (slice_is(method, "connect")) {
        on_connect(c, id, params);
    } else if (!c->authenticated && token[0]) {
        reply_error(c, id, -32001, "AUTHENTICATION_REQUIRED");
    } else if (slice_is(method, "ping")) {
        struct slice message = json_text(params, "message");
        frame_printf(&c->out,
                     "{\"jsonrpc\":\"2.0\",\"id\":%.*s,\"result\":{\"message\":\"pong: %.*s\","
                     "\"timestamp\":\"" STAMP "\",\"protocolVersion\":3}}",
                     (int)id.size, id.data, (int)message.size, message.data);
    } else if (slice_is(method, "session.create")) {
        on_create(c, id, json_text(params, "sessionId"));
    } else if (slice_is(method, "session.delete")) {
        on_delete(c, id, json_text(params, "sessionId"));
    } else if (slice_is(method, "session.list")) {
        on_list(c, id);
    } else if (slice_is(method, "sessions.getMetadata") || slice_is(method, "sessions.close")) {
        reply(c, id, "{}");
    } else {
        on_session_method(c, id, method, params);
    }
}

/* --- the loop ------------------------------------------------------------------------------- */

static void connection_close(struct connection *c) {
    for (size_t i = 0; i < sizeof buckets / sizeof *buckets && c->attachments > 0; i++)
        for (struct session *s = buckets[i]; s; s = s->next) session_detach(s, c);
    connections[c->index] = connections[--connection_count];
    connections[c->index]->index = c->index;
    close(c->fd);
    buffer_free(&c->in);
    buffer_free(&c->out);
    free(c);
}

static void connection_read(struct connection *c) {
    struct buffer *in = input_for(&c->in);
    char *room = buffer_reserve(in, READ_CHUNK);
    ssize_t n = recv(c->fd, room, in->capacity - in->end, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        connection_close(c);
        return;
    }
    in->end += (size_t)n;
    struct slice body;
    enum frame_result result;
    while ((result = frame_next(in, &body)) == FRAME_COMPLETE) on_frame(c, body);
    input_keep(&c->in, in);
    if (result == FRAME_BROKEN) {
        connection_close(c);
        return;
    }
    connection_flush(c);
    if (buffer_used(&c->out) == 0 && c->out.capacity > READ_CHUNK) buffer_free(&c->out);
}

static void accept_all(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        if (!c) die("out of memory");
        c->fd = fd;
        set_nodelay(fd);
        if (connection_count == connection_capacity) {
            connection_capacity = connection_capacity ? 2 * connection_capacity : MAX_EVENTS;
            connections = realloc(connections, connection_capacity * sizeof *connections);
            if (!connections) die("out of memory");
        }
        c->index = connection_count;
        connections[connection_count++] = c;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) die("usage: COPILOT_CONNECTION_TOKEN=... %s PORT", argv[0]);
    const char *secret = getenv("COPILOT_CONNECTION_TOKEN");
    snprintf(token, sizeof token, "%s", secret ? secret : "");
    raise_file_limit();
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)&address, &size))
        die("cannot listen on port %s: %s", argv[1], strerror(errno));
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &event);
    printf("CLI server listening on port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(poll_fd, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c)
                accept_all(listener);
            else if (events[i].events & EPOLLOUT && !(events[i].events & EPOLLIN))
                connection_flush(c);
            else
                connection_read(c);
        }
    }
}
