package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coloctl/coloctl/internal/guest/blob"
	"github.com/coloctl/coloctl/internal/guest/service"
)

// A talkKind is a way to use one TCP connection for long.
type talkKind struct {
	name  string
	every time.Duration // between two lines; 0 is only when it is asked for
	bytes int           // of a line
	rate  int64         // of a download, bytes a second; 0 is an echo
	v6    bool
}

// talkKinds are the mixed traffic of a campaign, without the short connections and writes beside it.
var talkKinds = []talkKind{
	{name: "echo", every: 20 * time.Millisecond},
	{name: "echo over IPv6", every: 20 * time.Millisecond, v6: true},
	{name: "upload", every: 60 * time.Millisecond, bytes: 16 << 10},
	{name: "upload over IPv6", every: 120 * time.Millisecond, bytes: 16 << 10, v6: true},
	{name: "download", rate: 256 << 10},
	{name: "download over IPv6", rate: 128 << 10, v6: true},
	{name: "idle"},
	{name: "idle over IPv6", v6: true},
}

const (
	// downloadWindow bounds what a download may have received and not yet read: twice of it can't have been sent before a moment.
	downloadWindow = 64 << 10
	downloadProof  = 256 << 10
	// talkAhead bounds the lines without an answer: a guest that is slow for a while must not be buried.
	talkAhead = 16
	talkDial  = 30 * time.Second
)

var errTalkEnd = errors.New("the talk was asked to end")

// A talk is one such connection. Every byte that comes is compared with what it must be.
type talk struct {
	kind   talkKind
	conn   net.Conn
	cancel context.CancelCauseFunc
	poke   chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	sent   []time.Time // of the lines without an answer
	newest time.Time   // when the newest line was sent that is answered
	got    int64       // of a download
	mark   time.Time   // what answeredSince was asked for last
	base   int64       // got, then
	err    error
}

// startTalk opens the connection, which is to be used until ctx ends or end is called.
func startTalk(ctx context.Context, dial DialFunc, kind talkKind) (*talk, error) {
	port := service.PortEcho
	if kind.rate > 0 {
		port = service.PortHTTP
	}
	addr := guestAddr(port)
	if kind.v6 {
		addr = guestAddr6(port)
	}
	dctx, cancel := context.WithTimeout(ctx, talkDial)
	defer cancel()
	conn, err := dial(dctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind.name, err)
	}
	t := &talk{kind: kind, conn: conn, poke: make(chan struct{}, 1)}
	ctx, t.cancel = context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	t.wg.Go(func() {
		defer stop()
		t.fail(t.run(ctx))
		_ = conn.Close()
	})
	return t, nil
}

func (t *talk) run(ctx context.Context) error {
	if t.kind.rate > 0 {
		return t.download(ctx)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		if err := t.say(ctx); err != nil {
			t.fail(err)
			_ = t.conn.Close()
		}
	})
	return t.hear()
}

func (t *talk) line(n int64) string {
	return fmt.Sprintf("%d %s%s\n", n, t.kind.name, strings.Repeat(string(rune('a'+n%26)), t.kind.bytes))
}

// say sends a line at each interval, or when it is asked to. A line that the connection doesn't take lets the next wait.
func (t *talk) say(ctx context.Context) error {
	var tick <-chan time.Time
	if t.kind.every > 0 {
		ticker := time.NewTicker(t.kind.every)
		defer ticker.Stop()
		tick = ticker.C
	}
	for n := int64(1); ; n++ {
		select {
		case <-tick:
		case <-t.poke:
		case <-ctx.Done():
			return nil
		}
		t.mu.Lock()
		full := len(t.sent) >= talkAhead
		if !full {
			t.sent = append(t.sent, time.Now())
		}
		t.mu.Unlock()
		if full {
			n--
			continue
		}
		if _, err := io.WriteString(t.conn, t.line(n)); err != nil {
			return fmt.Errorf("send line %d: %w", n, err)
		}
	}
}

func (t *talk) hear() error {
	r := bufio.NewReaderSize(t.conn, 64<<10)
	for n := int64(1); ; n++ {
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if want := fmt.Sprintf("%d %s", n, t.line(n)); line != want {
			return fmt.Errorf("%w: line %d is %.60q, want %.60q", ErrChecksum, n, line, want)
		}
		t.mu.Lock()
		if len(t.sent) == 0 {
			t.mu.Unlock()
			return fmt.Errorf("%w: line %d was never sent", ErrChecksum, n)
		}
		t.newest, t.sent = t.sent[0], t.sent[1:]
		t.mu.Unlock()
	}
}

func (t *talk) download(ctx context.Context) error {
	if tcp, ok := t.conn.(*net.TCPConn); ok {
		if err := tcp.SetReadBuffer(downloadWindow); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://guest/blob?size=%d&seed=7", int64(streamSize)), nil)
	if err != nil {
		return err
	}
	if err := req.Write(t.conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(t.conn), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status)
	}
	want := blob.NewReader(streamSize, 7)
	got, expected := make([]byte, streamChunk), make([]byte, streamChunk)
	tick := time.NewTicker(time.Duration(int64(time.Second) * streamChunk / t.kind.rate))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if _, err := io.ReadFull(resp.Body, got); err != nil {
			return fmt.Errorf("after %d bytes: %w", t.got, err)
		}
		if _, err := io.ReadFull(want, expected); err != nil {
			return err
		}
		if !bytes.Equal(got, expected) {
			return fmt.Errorf("%w: in the %d bytes from %d", ErrChecksum, streamChunk, t.got)
		}
		t.mu.Lock()
		t.got += streamChunk
		t.mu.Unlock()
	}
}

// answeredSince says whether the guest has said what it can only have said after a moment, or the error that ended the connection.
func (t *talk) answeredSince(at time.Time) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return false, t.err
	}
	if t.kind.rate > 0 {
		if !t.mark.Equal(at) {
			t.mark, t.base = at, t.got
		}
		return t.got-t.base >= downloadProof, nil
	}
	return t.newest.After(at), nil
}

// ask makes an idle connection say one line.
func (t *talk) ask() {
	if t.kind.rate > 0 || t.kind.every > 0 {
		return
	}
	select {
	case t.poke <- struct{}{}:
	default:
	}
}

func (t *talk) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
}

// end closes the connection. A second call does nothing.
func (t *talk) end() {
	t.cancel(errTalkEnd)
	t.wg.Wait()
}
