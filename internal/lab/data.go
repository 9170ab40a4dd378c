package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/coloctl/coloctl/internal/guest/blob"
)

// The second disk of some labs has no file system: the guest writes to it what it is told to, so that much can differ within moments.
const (
	dataDisk = "vdb"
	dataFile = dataDisk + ".raw"
)

// makeData makes the image of the second disk, sparse, with something in its beginning.
func makeData(path string, size, filled int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		_, err = io.Copy(f, blob.NewReader(filled, 1))
	}
	return errors.Join(err, f.Close())
}

// writeData lets the guest write to its second disk and flush it. What a place holds afterwards depends on the seed. It asks again until the guest,
// which may be between two hosts, has answered.
func (r *Run) writeData(ctx context.Context, offset, size int64, seed uint64) error {
	return poll(ctx, func() (bool, error) {
		wctx, cancel := context.WithTimeout(ctx, counterTimeout)
		defer cancel()
		err := r.tellGuest(wctx, fmt.Sprintf("/raw?offset=%d&size=%d&seed=%d", offset, size, seed))
		return err == nil, err
	})
}

// dataPage is what the places of writes are multiples of.
const dataPage = 4096

// rewrite lets the guest write so much to random places in what is filled of its second disk, in pieces.
func (r *Run) rewrite(ctx context.Context, size, piece int64) error {
	for ; size > 0; size -= piece {
		at := r.Rand.Int64N((r.Lab.opts.Filled-piece)/dataPage) * dataPage
		if err := r.writeData(ctx, at, min(piece, size), r.Rand.Uint64N(1<<40)); err != nil {
			return err
		}
	}
	return nil
}

// load writes to the second disk without a pause until it is stopped.
type load struct {
	stop    context.CancelFunc
	done    chan struct{}
	written atomic.Int64 // bytes that the guest has acknowledged
}

// startLoad must be called when nothing else draws from r.Rand; it has a source of its own from then on.
func (r *Run) startLoad(ctx context.Context, piece int64) *load {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &load{stop: stop, done: make(chan struct{})}
	seed, places := r.Rand.Uint64N(1<<40), (r.Lab.opts.Filled-piece)/dataPage
	go func() {
		defer close(l.done)
		for i := uint64(0); ctx.Err() == nil; i++ {
			at := int64((seed+i*7919)%uint64(places)) * dataPage
			if r.writeData(ctx, at, piece, seed+i) == nil { // or it was stopped
				l.written.Add(piece)
			}
		}
	}()
	return l
}

// end returns how much was acknowledged.
func (l *load) end() int64 {
	l.stop()
	<-l.done
	return l.written.Load()
}
