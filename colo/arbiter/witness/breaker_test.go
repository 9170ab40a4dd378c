package witness

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
)

// breaker makes connections that can lose what is sent over them.
type breaker struct {
	loss atomic.Int32 // 0 nothing, 1 requests vanish, 2 answers vanish
	lost atomic.Int32

	mu    sync.Mutex
	conns map[*brittle]bool
}

func (b *breaker) setLoss(n int) { b.loss.Store(int32(n)) }
func (b *breaker) mend()         { b.loss.Store(0) }

// cut breaks all connections.
func (b *breaker) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		b.lost.Add(1)
		_ = c.Conn.Close()
	}
}

func (b *breaker) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if b.loss.Load() == 1 {
		b.lost.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	out := &brittle{Conn: c, b: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conns == nil {
		b.conns = map[*brittle]bool{}
	}
	b.conns[out] = true
	return out, nil
}

type brittle struct {
	net.Conn
	b *breaker
}

func (c *brittle) Write(p []byte) (int, error) {
	if c.b.loss.Load() == 1 {
		c.b.lost.Add(1)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *brittle) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == nil && c.b.loss.Load() == 2 {
		c.b.lost.Add(1)
		return 0, errors.New("lost")
	}
	return n, err
}

func (c *brittle) Close() error {
	c.b.mu.Lock()
	delete(c.b.conns, c)
	c.b.mu.Unlock()
	return c.Conn.Close()
}
