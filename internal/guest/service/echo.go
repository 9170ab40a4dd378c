package service

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
)

// MaxEchoLine is the longest line that ServeEcho accepts, in bytes.
const MaxEchoLine = 64 << 10

// ServeEcho answers every line of a TCP client with the line's number in this
// connection, from 1, a space and the line itself. So a client sees that no
// line was lost, repeated or changed. A connection ends at its first line that
// is too long. ServeEcho returns when ctx ends, after all its connections; it
// closes l.
func ServeEcho(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			defer conn.Close()
			echoLines(conn)
		})
	}
}

func echoLines(conn io.ReadWriter) {
	r := bufio.NewReaderSize(conn, MaxEchoLine)
	var answer []byte
	for n := int64(1); ; n++ {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		answer = append(strconv.AppendInt(answer[:0], n, 10), ' ')
		answer = append(answer, line...)
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// ServeEchoUDP sends every datagram back as it came. It returns when ctx ends;
// it closes pc.
func ServeEchoUDP(ctx context.Context, pc net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { _ = pc.Close() })
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		// A client that can't be reached is no reason to stop serving others.
		_, _ = pc.WriteTo(buf[:n], from)
	}
}
