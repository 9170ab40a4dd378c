package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coloctl/coloctl/internal/guest/blob"
)

// StreamProbe downloads an endless blob over HTTP at a moderate rate and compares every byte with what it must be. The connection's window
// holds the guest back, as a slow client's does.
type StreamProbe struct {
	Track
	url    string
	client *http.Client
	rate   int64

	mu  sync.Mutex
	got int64
	err error
}

const (
	streamSize  = 1 << 50
	streamChunk = 16 << 10
)

// NewStreamProbe makes a download at about so many bytes a second.
func NewStreamProbe(dial DialFunc, addr string, rate int64) *StreamProbe {
	return &StreamProbe{Track: Track{Name: "stream"}, url: fmt.Sprintf("http://%s/blob?size=%d&seed=1", addr, int64(streamSize)),
		client: newHTTPClient(dial, 0), rate: rate}
}

// Run downloads until ctx ends, then wants more bytes before final ends, and closes the connection.
func (p *StreamProbe) Run(ctx, final context.Context) {
	defer p.client.CloseIdleConnections()
	err := p.download(final, ctx.Done())
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
}

var errStreamEnd = errors.New("the stream was asked to end")

// download ends with nil when bytes came after the end was asked for.
func (p *StreamProbe) download(ctx context.Context, end <-chan struct{}) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", p.url, resp.Status)
	}
	err = p.compare(resp.Body, end)
	switch {
	case errors.Is(err, errStreamEnd):
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("no more bytes: %w", context.Cause(ctx))
	}
	return err
}

func (p *StreamProbe) compare(r io.Reader, end <-chan struct{}) error {
	want := blob.NewReader(streamSize, 1)
	got, expected := make([]byte, streamChunk), make([]byte, streamChunk)
	pause := time.Duration(int64(time.Second) * streamChunk / p.rate)
	for {
		asked := false
		select {
		case <-end:
			asked = true
		default:
		}
		sent := time.Now()
		if _, err := io.ReadFull(r, got); err != nil {
			return err
		}
		p.add(sent, time.Now(), true)
		if _, err := io.ReadFull(want, expected); err != nil {
			return err
		}
		p.mu.Lock()
		at := p.got
		p.got += streamChunk
		p.mu.Unlock()
		if !bytes.Equal(got, expected) {
			return fmt.Errorf("%w: in the %d bytes from %d", ErrChecksum, streamChunk, at)
		}
		if asked {
			return errStreamEnd
		}
		select {
		case <-end:
		case <-time.After(pause):
		}
	}
}

// Survived is nil if every byte was right and they still came at the end. Run must have ended.
func (p *StreamProbe) Survived() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return fmt.Errorf("connection %s: after %d bytes: %w", p.Name, p.got, p.err)
	}
	return nil
}
