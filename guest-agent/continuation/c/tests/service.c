/* A service in C whose connection moves: two servers and a client on the loopback of one namespace, so that the
 * old one leaves before the new one arrives. It echoes in upper case, and its state is how many bytes it has had. */
#define _GNU_SOURCE
#include <continuation.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHECK(condition)                                                                         \
	do {                                                                                     \
		if (!(condition)) {                                                              \
			fprintf(stderr, "line %d: %s (%s: %s)\n", __LINE__, #condition,          \
				cont_error(), strerror(errno));                                  \
			exit(1);                                                                 \
		}                                                                                \
	} while (0)

/* Serves `length` bytes. */
static void serve(cont_t *cont, size_t length)
{
	char buffer[64];
	while (length > 0) {
		ssize_t got = cont_read(cont, buffer, length < sizeof buffer ? length : sizeof buffer);
		CHECK(got > 0);
		for (ssize_t i = 0; i < got; i++)
			buffer[i] = (char)(buffer[i] - 'a' + 'A');
		for (ssize_t done = 0; done < got;) {
			ssize_t more = cont_write(cont, buffer + done, (size_t)(got - done));
			CHECK(more > 0);
			done += more;
		}
		length -= (size_t)got;
	}
}

static void expect(int fd, const char *text)
{
	char buffer[64] = { 0 };
	CHECK(recv(fd, buffer, strlen(text), MSG_WAITALL) == (ssize_t)strlen(text));
	CHECK(strcmp(buffer, text) == 0);
}

int main(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(0x7f000001) } };
	socklen_t size = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
	CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
	CHECK(cont_mark_migratable(listener, 0) == 0);
	CHECK(connect(client, (struct sockaddr *)&address, size) == 0);
	cont_t *old = cont_create(accept(listener, NULL, NULL));
	CHECK(old != NULL && cont_fd(old) >= 0);

	CHECK(send(client, "abcdefgh", 8, 0) == 8);
	serve(old, 8);
	expect(client, "ABCDEFGH");
	uint64_t count = 3;
	CHECK(cont_export(old, &count, sizeof count, 99, 3) == -1 && strstr(cont_error(), "99") != NULL);
	CHECK(cont_export(old, &count, sizeof count, 3, 3) == 0);
	CHECK(send(client, "ijkl", 4, 0) == 4);
	char peeked[4];
	CHECK(recv(cont_fd(old), peeked, 4, MSG_PEEK | MSG_WAITALL) == 4);

	cont_blob_t blob;
	CHECK(cont_freeze(old, &blob) == 0);
	CHECK(cont_read(old, peeked, 4) == -1 && errno == EINVAL);
	CHECK(cont_import(blob.bytes, blob.length - 1) == NULL);
	CHECK(cont_import(blob.bytes, blob.length) == NULL && strstr(cont_error(), "already") != NULL);
	CHECK(cont_thaw(old) == 0);
	cont_blob_free(&blob);
	CHECK(cont_freeze(old, &blob) == 0);
	cont_leave(old);

	cont_t *new = cont_import(blob.bytes, blob.length);
	CHECK(new != NULL);
	cont_blob_free(&blob);
	CHECK(cont_start(new) == 0);
	const void *state;
	uint64_t read, sent;
	CHECK(cont_exported(new, &state, NULL, &read, &sent) == 0);
	CHECK(memcmp(state, &count, sizeof count) == 0 && read == 3 && sent == 3);
	CHECK(cont_bytes_read(new) == 3 && cont_bytes_sent(new) == 3);
	/* Five bytes that the old server has answered, which the client gets once, and four that it has not. */
	serve(new, 9);
	expect(client, "IJKL");
	CHECK(cont_bytes_read(new) == 12);
	CHECK(send(client, "m", 1, 0) == 1);
	serve(new, 1);
	expect(client, "M");
	cont_free(new);
	CHECK(recv(client, peeked, 1, 0) == 0);
	puts("moved");
	return 0;
}
