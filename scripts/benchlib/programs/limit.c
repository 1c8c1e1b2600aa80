/* What this machine can do without Python: an echo and a file, as plain as C makes them, with no digest.
 *
 *   limit echo-server                     answers 32-byte messages, prints its address
 *   limit echo-client PORT SECONDS        one message after another; prints JSON
 *   limit file-server FILE                sends the file to whoever connects (sendfile)
 *   limit file-client PORT TARGET SIZE    receives that many bytes into a new file (splice through a 1 MiB pipe, or
 *                                         read and write where the file system cannot splice); prints JSON
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE = 32, TURN = 1 << 20 };

static void fail(const char *what) {
    fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static int listen_on_loopback(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (void *)&address, size) || listen(listener, 128)) fail("listen");
    if (getsockname(listener, (void *)&address, &size)) fail("getsockname");
    printf("PYRO:limit@127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static int prepared(int connection) {
    int on = 1;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return connection;
}

static int connected(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_port = htons(atoi(port));
    if (connection < 0 || connect(connection, (void *)&address, sizeof address)) fail("connect");
    return prepared(connection);
}

static int read_message(int connection, char *message) {
    for (ssize_t have = 0, count; have < MESSAGE; have += count) {
        count = recv(connection, message + have, MESSAGE - have, 0);
        if (count <= 0) return 0;
    }
    return 1;
}

static void echo_server(void) {
    char message[MESSAGE];
    for (int listener = listen_on_loopback();;) {
        int connection = prepared(accept(listener, NULL, NULL));
        while (read_message(connection, message) && send(connection, message, MESSAGE, MSG_NOSIGNAL) == MESSAGE) continue;
        close(connection);
    }
}

static void echo_client(const char *port, double seconds) {
    char message[MESSAGE] = {0};
    int connection = connected(port);
    long calls = 0;
    double start = now(), end;
    do {
        for (int i = 0; i < 100; i++, calls++)
            if (send(connection, message, MESSAGE, 0) != MESSAGE || !read_message(connection, message)) fail("echo");
    } while ((end = now()) < start + seconds);
    printf("{\"calls\": %ld, \"seconds\": %f, \"cpu_s\": %f}\n", calls, end - start, cpu());
}

static void file_server(const char *path) {
    int file = open(path, O_RDONLY);
    struct stat info;
    if (file < 0 || fstat(file, &info)) fail(path);
    for (int listener = listen_on_loopback();;) {
        int connection = accept(listener, NULL, NULL);
        for (off_t at = 0; at < info.st_size;)
            if (sendfile(connection, file, &at, TURN) <= 0) break;
        close(connection);
    }
}

static ssize_t copied(int from, int to, size_t most) {
    static char block[TURN];
    ssize_t count = read(from, block, most);
    for (ssize_t written, done = 0; done < count; done += written)
        if ((written = write(to, block + done, count - done)) <= 0) fail("write");
    return count;
}

static void file_client(const char *port, const char *target, long size) {
    int connection = connected(port), pipes[2];
    int file = open(target, O_WRONLY | O_CREAT | O_EXCL, 0600);
    long bytes = 0;
    double start = now();
    if (file < 0 || pipe(pipes)) fail(target);
    fcntl(pipes[1], F_SETPIPE_SZ, TURN);
    for (ssize_t count; (count = splice(connection, NULL, pipes[1], NULL, TURN, SPLICE_F_MOVE)) > 0;)
        for (bytes += count; count > 0;) {
            ssize_t moved = splice(pipes[0], NULL, file, NULL, count, SPLICE_F_MOVE);
            if (moved < 0 && errno == EINVAL) moved = copied(pipes[0], file, count);
            if (moved <= 0) fail("splice");
            count -= moved;
        }
    if (bytes != size) {
        fprintf(stderr, "limit: %ld of %ld bytes came\n", bytes, size);
        exit(1);
    }
    if (close(file)) fail(target);
    printf("{\"bytes\": %ld, \"seconds\": %f, \"cpu_s\": %f}\n", bytes, now() - start, cpu());
}

int main(int count, char **words) {
    const char *mode = count > 1 ? words[1] : "";
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(mode, "echo-server")) echo_server();
    else if (!strcmp(mode, "echo-client") && count == 4) echo_client(words[2], atof(words[3]));
    else if (!strcmp(mode, "file-server") && count == 3) file_server(words[2]);
    else if (!strcmp(mode, "file-client") && count == 5) file_client(words[2], words[3], atol(words[4]));
    else return fprintf(stderr, "limit echo-server | echo-client PORT SECONDS | file-server FILE | file-client PORT TARGET SIZE\n"), 2;
    return 0;
}
