/*
 * Service continuations: TCP connections that move between machines with the state of their server.
 *
 * Link with libcontinuation_c.a, and -lpthread -ldl -lm. Functions that return an int return 0, or -1 with
 * errno set; those that return a pointer return NULL then. cont_error() says why, in words.
 *
 * A continuation is used by one thread at a time. Freezing and restoring need CAP_NET_ADMIN, or a helper:
 * see cont_use_helper().
 */
#ifndef CONTINUATION_H
#define CONTINUATION_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cont cont_t;

/* What is sent to the new home: both parts in one. Freed by cont_blob_free(). */
typedef struct {
	uint8_t *bytes;
	size_t length;
} cont_blob_t;

/* Limits the buffers of a connection, or of all that a listening socket accepts, so that a move is short; 0
 * bytes are the default of 256 KiB. */
int cont_mark_migratable(int fd, uint32_t bytes);

/* Asks the helper that listens at this path, instead of using an own privilege, from now on. */
int cont_use_helper(const char *path);

/* Of a connection that has just begun. The descriptor belongs to the continuation, if it succeeds. */
cont_t *cont_create(int fd);

/* As read(2) and write(2) of the connection. What is read and written past them is lost in a move. */
ssize_t cont_read(cont_t *cont, void *buffer, size_t length);
ssize_t cont_write(cont_t *cont, const void *buffer, size_t length);

/* The descriptor, for poll(2) and options; it still belongs to the continuation. */
int cont_fd(const cont_t *cont);

/* The server has this state when it has read and sent so many bytes since the connection began. */
int cont_export(cont_t *cont, const void *state, size_t length, uint64_t read, uint64_t sent);

/* The last export. The state belongs to the continuation, until it is changed or freed. */
int cont_exported(const cont_t *cont, const void **state, size_t *length, uint64_t *read, uint64_t *sent);

/* Bytes that were read and sent since the connection began, by this and earlier servers. */
uint64_t cont_bytes_read(const cont_t *cont);
uint64_t cont_bytes_sent(const cont_t *cont);

/* The connection falls silent, cut to the last export; the blob is what its new home needs. The network holds
 * what comes for it, from before this on. */
int cont_freeze(cont_t *cont, cont_blob_t *blob);

/* It goes on here. */
int cont_thaw(cont_t *cont);

/* It goes on elsewhere: here it ends, without a word to the peer. Frees the continuation. */
void cont_leave(cont_t *cont);

/* Makes a connection of a blob; it is silent, until cont_start(). */
cont_t *cont_import(const void *bytes, size_t length);

/* It goes on here. The network leads here, and may still hold what comes. The descriptor blocks. */
int cont_start(cont_t *cont);

/* Closes the connection, or leaves it where it is if it was frozen, and frees the continuation. */
void cont_free(cont_t *cont);

void cont_blob_free(cont_blob_t *blob);

/* Why the last call of this thread failed; until the next. */
const char *cont_error(void);

#ifdef __cplusplus
}
#endif

#endif
