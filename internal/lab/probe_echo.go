package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// maxUnanswered bounds the lines that an echo connection has under way: 5 minutes of them.
const maxUnanswered = 1 << 16

// EchoProbe keeps one TCP connection to the guest's echo service for its whole life. With an interval it sends a line at each, and doesn't
// wait for answers; without one the connection is idle until Finish.
type EchoProbe struct {
	Track
	apart time.Duration // between two of its questions, unless less than usual
	conn  net.Conn
	idle  bool

	mu     sync.Mutex
	sent   []time.Time // of the lines not answered yet
	next   int64       // number of the next line
	answer int64       // number of the last answered line
	closed bool        // by us: what it says afterwards is no error of the guest
	err    error
}

// NewEchoProbe opens the connection.
func NewEchoProbe(ctx context.Context, dial DialFunc, name, addr string, idle bool) (*EchoProbe, error) {
	conn, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connection %s: %w", name, err)
	}
	return &EchoProbe{Track: Track{Name: name}, conn: conn, idle: idle}, nil
}

// Run uses the connection until ctx ends, asks once more whether it still works, until final ends, and closes it.
func (p *EchoProbe) Run(ctx, final context.Context) {
	read := make(chan struct{})
	go func() {
		defer close(read)
		p.read()
	}()
	stop := context.AfterFunc(final, func() { _ = p.conn.SetWriteDeadline(time.Now()) })
	defer stop()
	if p.idle {
		<-ctx.Done()
	} else {
		every(ctx, max(p.apart, probeInterval), p.send)
	}
	p.send()
	p.finish(final)
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.conn.Close()
	<-read
}

func (p *EchoProbe) send() {
	p.mu.Lock()
	if p.err != nil || len(p.sent) >= maxUnanswered {
		p.mu.Unlock()
		return
	}
	p.next++
	n := p.next
	p.sent = append(p.sent, time.Now())
	p.mu.Unlock()
	// A client's send buffer is full after some seconds without an answer; then this waits, as any client's program would, until final at the most.
	if _, err := fmt.Fprintf(p.conn, "%d %s\n", n, p.Name); err != nil {
		p.fail(fmt.Errorf("send line %d: %w", n, err))
	}
}

func (p *EchoProbe) read() {
	r := bufio.NewReader(p.conn)
	for {
		line, err := r.ReadString('\n')
		now := time.Now()
		if err != nil {
			p.fail(fmt.Errorf("read: %w", err))
			return
		}
		p.mu.Lock()
		want := fmt.Sprintf("%d %d %s", p.answer+1, p.answer+1, p.Name)
		if got := strings.TrimSuffix(line, "\n"); got != want || len(p.sent) == 0 {
			p.mu.Unlock()
			p.fail(fmt.Errorf("answer %q, want %q", got, want))
			return
		}
		p.answer++
		sent := p.sent[0]
		p.sent = p.sent[1:]
		p.mu.Unlock()
		p.add(sent, now, true)
	}
}

func (p *EchoProbe) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil && !p.closed {
		p.err = err
	}
}

// finish waits for the answers to all that was sent.
func (p *EchoProbe) finish(final context.Context) {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		p.mu.Lock()
		left, err := len(p.sent), p.err
		p.mu.Unlock()
		if left == 0 || err != nil {
			return
		}
		select {
		case <-final.Done():
			p.fail(fmt.Errorf("no answer to %d lines: %w", left, context.Cause(final)))
			return
		case <-tick.C:
		}
	}
}

// state tells what the connection waits for.
func (p *EchoProbe) state() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("%d lines sent, %d answered; %s", p.next, p.answer, tcpState(p.conn))
}

// Survived is nil if every line was answered rightly over the one connection. Run must have ended.
func (p *EchoProbe) Survived() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return fmt.Errorf("connection %s: %w", p.Name, p.err)
	}
	return nil
}
