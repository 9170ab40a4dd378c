package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"
)

// UDPProbe sends a datagram to the guest's echo service every 50 ms.
type UDPProbe struct {
	Track
	conn net.Conn

	mu    sync.Mutex
	sent  map[uint64]time.Time
	total uint64
}

const udpInterval = 50 * time.Millisecond

// udpLost is the age at which an unanswered datagram counts as lost.
const udpLost = 2 * time.Second

// NewUDPProbe makes the socket.
func NewUDPProbe(ctx context.Context, dial DialFunc, addr string) (*UDPProbe, error) {
	conn, err := dial(ctx, "udp", addr)
	if err != nil {
		return nil, fmt.Errorf("udp probe: %w", err)
	}
	return &UDPProbe{Track: Track{Name: "udp"}, conn: conn, sent: map[uint64]time.Time{}}, nil
}

// Run probes until ctx ends.
func (p *UDPProbe) Run(ctx context.Context) {
	read := make(chan struct{})
	go func() {
		defer close(read)
		p.read(ctx)
	}()
	every(ctx, udpInterval, p.send)
	_ = p.conn.Close()
	<-read
}

func (p *UDPProbe) send() {
	now := time.Now()
	p.mu.Lock()
	p.total++
	n := p.total
	p.sent[n] = now
	old := n - uint64(udpLost/udpInterval)
	at, lost := p.sent[old]
	delete(p.sent, old)
	p.mu.Unlock()
	if lost {
		p.add(at, now, false)
	}
	// An unreachable guest (no answer to ARP) is what is measured here, not an error.
	_, _ = p.conn.Write(binary.BigEndian.AppendUint64(nil, n))
}

func (p *UDPProbe) read(ctx context.Context) {
	buf := make([]byte, 64)
	for {
		n, err := p.conn.Read(buf)
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			// The host reports the guest as unreachable on the socket; it is to go on.
			select {
			case <-ctx.Done():
				return
			case <-time.After(probeInterval):
			}
			continue
		case n != 8:
			continue
		}
		seq := binary.BigEndian.Uint64(buf)
		p.mu.Lock()
		sent, ok := p.sent[seq]
		delete(p.sent, seq)
		p.mu.Unlock()
		if ok {
			p.add(sent, now, true)
		}
	}
}
