package blockrepl

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"time"
)

// greeting is what an NBD server says first, also one with TLS.
const greeting = "NBDMAGICIHAVEOPT"

// probe asks whether an NBD server is alive at an address. A connection alone
// proves nothing: the kernel of a frozen QEMU accepts it.
func probe(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), to Address, within time.Duration) error {
	addr := net.JoinHostPort(to.Host, strconv.Itoa(to.Port))
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := dial(ctx, "tcp", addr)
	if err != nil {
		return &ProbeError{addr, err}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, len(greeting))
	if _, err := io.ReadFull(conn, buf); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(errors.New("connected, but it says nothing"), context.Cause(ctx))
		}
		return &ProbeError{addr, err}
	}
	if string(buf) != greeting {
		return &ProbeError{addr, errors.New("not an NBD server")}
	}
	return nil
}
