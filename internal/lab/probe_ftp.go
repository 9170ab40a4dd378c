package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jlaffaye/ftp"

	"github.com/coloctl/coloctl/internal/guest/blob"
	"github.com/coloctl/coloctl/internal/guest/service"
)

// ErrChecksum is returned by a download whose bytes are not those of the blob.
var ErrChecksum = errors.New("checksum differs")

// Download is one FTP transfer of a blob over one data connection, checked at its end. It never resumes: a connection that breaks is a
// failure.
type Download struct {
	Track
	Size int64
	Seed uint64

	dial DialFunc
	addr string
	got  atomic.Int64

	mu    sync.Mutex
	conns []net.Conn
}

// NewDownload makes a download of a blob from the guest at host:port.
func NewDownload(dial DialFunc, addr string, size int64, seed uint64) *Download {
	return &Download{Track: Track{Name: "download"}, Size: size, Seed: seed, dial: dial, addr: addr}
}

// Got returns the bytes received so far.
func (d *Download) Got() int64 { return d.got.Load() }

// Run downloads. When ctx ends the connections are closed.
func (d *Download) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, d.closeAll)
	defer stop()
	err := d.transfer(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("download of %d bytes, at %d: %w", d.Size, d.Got(), err)
	}
	return nil
}

func (d *Download) transfer(ctx context.Context) (err error) {
	c, err := ftp.Dial(d.addr, ftp.DialWithDialFunc(func(network, addr string) (net.Conn, error) {
		conn, err := d.dial(ctx, network, addr)
		if err == nil {
			d.mu.Lock()
			d.conns = append(d.conns, conn)
			d.mu.Unlock()
		}
		return conn, err
	}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Quit()) }()
	if err := c.Login("anonymous", "lab"); err != nil {
		return err
	}
	r, err := c.Retr(strings.TrimPrefix(service.BlobPath(d.Size, d.Seed), "/"))
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(sum, &progress{d: d, last: time.Now()}), r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); d.Got() != d.Size || got != blob.SHA256(d.Size, d.Seed) {
		return fmt.Errorf("%w: %d of %d bytes, sha256 %s", ErrChecksum, d.Got(), d.Size, got)
	}
	return nil
}

func (d *Download) closeAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		_ = c.Close()
	}
}

// progress adds a point at most every probeInterval: the time since bytes came before.
type progress struct {
	d    *Download
	last time.Time
}

func (p *progress) Write(b []byte) (int, error) {
	p.d.got.Add(int64(len(b)))
	if now := time.Now(); now.Sub(p.last) >= probeInterval {
		p.d.add(p.last, now, true)
		p.last = now
	}
	return len(b), nil
}
