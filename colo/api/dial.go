package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

const (
	dialTimeout = 5 * time.Second
	// dialStagger is the head start that an address has over the next one. A host that is up answers long before.
	dialStagger = 50 * time.Millisecond
	// silence is after which a connection to a host that has gone is given up, while a request is on it or its answer is waited for.
	silence = 5 * time.Second
)

// dialTCP connects so that a host that disappears is noticed, however long the answer to a request may take.
func dialTCP(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 4, Interval: silence / 4, Count: 3},
		Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds())) // an improvement only
			})
		},
	}
	return d.DialContext(ctx, network, addr)
}

// addresses are those of one host. They can be changed at any moment.
type addresses struct{ list atomic.Pointer[[]string] }

func (a *addresses) set(list []string) { a.list.Store(&list) }

// dial connects to the address that answers first, the earlier ones having a head start.
func (a *addresses) dial(ctx context.Context, network string, one dialFunc) (net.Conn, error) {
	list := *a.list.Load()
	if len(list) == 0 {
		return nil, errors.New("no address")
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	var errs []error
	started, open := 0, 0
	next := time.NewTimer(0)
	defer next.Stop()
	start := func() {
		addr := list[started]
		started++
		open++
		go func() { // ends with ctx; its result is always taken
			conn, err := one(ctx, network, addr)
			if err != nil {
				err = fmt.Errorf("%s: %w", addr, err)
			}
			results <- result{conn, err}
		}()
		if started < len(list) {
			next.Reset(dialStagger)
		}
	}
	for {
		select {
		case <-next.C:
			start()
			continue
		case r := <-results:
			open--
			if r.err == nil {
				cancel()
				for range open { // they end at once now
					if late := <-results; late.conn != nil {
						_ = late.conn.Close()
					}
				}
				return r.conn, nil
			}
			errs = append(errs, r.err)
		}
		if open == 0 && started == len(list) {
			return nil, inOneLine(errs)
		}
		if open == 0 {
			next.Reset(0)
		}
	}
}

// inOneLine joins the errors of several addresses: they are read in tables and logs.
func inOneLine(errs []error) error {
	err := errs[0]
	for _, e := range errs[1:] {
		err = fmt.Errorf("%w; %w", err, e)
	}
	return err
}
