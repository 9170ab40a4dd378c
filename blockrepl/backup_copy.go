package blockrepl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/qmp"
)

// A backup to an NBD server must never put that server into the guest's way,
// whatever it and the network do. As the target of QEMU's job it would be there:
// before the guest overwrites something, that is written to the job's target; and
// each checkpoint drains and flushes all that QEMU has open. So QEMU doesn't get to
// know the server. Its job copies what the guest overwrites to a scratch image on
// this node, and nothing else (sync=none); a node above shows the disk as it was at
// the first moment, from that image and the disk (snapshot-access), on a unix socket;
// and this process reads it there and writes it to the server, in its own time.
//
// A checkpoint waits for QEMU's answers to reads, too. Each read here is so small
// that its answer fits into the socket whether anybody takes it or not, and each
// connection has one at a time: a daemon that stands still keeps nobody waiting.
//
// When the scratch image can't be written, what was overwritten is lost for the
// backup: the guest's write goes on (break-snapshot), and each read from then on is
// an error.

const (
	// backupRead is one answer of QEMU's.
	backupRead = nbdMaxRead
	// backupWrite and backupZeroes go to the server in one request, at most.
	backupWrite  = 1 << 20
	backupZeroes = 32 << 20
	// backupFlush is how much the server may not have made durable yet, so that the
	// flush at the end is none of everything.
	backupFlush = 256 << 20
	// flushPatience is how many times longer than anything else a flush may take.
	flushPatience = 10
)

// serve shows the disks as they were when the jobs began, and copies them to the exports.
func (o BackupOptions) serve(ctx context.Context, c *qmp.Client, disks []Disk, exports backupExports) (err error) {
	if err := serveUnix(ctx, c, disks, o.Socket); err != nil {
		return err
	}
	defer func() {
		if err != nil { // what follows removes the server with its exports
			sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
			defer cancel()
			err = errors.Join(err, stopIdleServer(sctx, c))
		}
	}()
	views := backupExports{}
	defer views.Close()
	for _, d := range disks {
		view := map[string]any{"driver": "snapshot-access", "node-name": d.backupView(), "file": d.backupFilter()}
		if err := c.BlockdevAdd(ctx, view); err != nil {
			return err
		}
		if err := c.BlockExportAdd(ctx, qmp.BlockExport{Type: "nbd", ID: d.backupExport(), NodeName: d.backupView(), Name: d.backupView()}); err != nil {
			return err
		}
		n, err := dialNBD(ctx, new(net.Dialer).DialContext, "unix", o.Socket, d.backupView())
		if err != nil {
			return err
		}
		views[d.Name] = n
		if n.size != d.Size {
			return d.fault(ErrWrongSize, fmt.Sprintf("QEMU shows %d bytes of it", n.size), "")
		}
	}
	cctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g, gctx := errgroup.WithContext(cctx)
	var done atomic.Int64
	var total int64
	for _, d := range disks {
		total += d.Size
		g.Go(func() error {
			return (&diskCopy{o: o, d: d, from: views[d.Name], to: exports[d.Name], done: &done}).run(gctx)
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- g.Wait() }()
	tick := time.NewTicker(backupLook)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err == nil && o.OnProgress != nil {
				o.OnProgress(done.Load(), total)
			}
			return err
		case <-tick.C:
		}
		if err := o.intact(ctx, c, disks); err != nil {
			cancel(err)
			if e := <-ended; e != nil { // it may have ended well right before
				return err
			}
			return nil
		}
		if o.OnProgress != nil {
			o.OnProgress(done.Load(), total)
		}
	}
}

// intact tells whether the jobs still keep what the guest overwrites, and have room for it.
func (o BackupOptions) intact(ctx context.Context, c *qmp.Client, disks []Disk) error {
	jobs, err := backupJobs(ctx, c, disks)
	if err != nil {
		return err
	}
	for i, d := range disks {
		if jobs[i].Status == "concluded" {
			return errBackupEnded
		}
		if err := CheckScratch(filepath.Dir(o.Targets[d.Name])); err != nil {
			return err
		}
	}
	return nil
}

// diskCopy copies one disk to its export. While one part is written the next is read.
type diskCopy struct {
	o        BackupOptions
	d        Disk
	from, to *nbdClient
	done     *atomic.Int64
}

// diskPart is a part of a disk that is data or nothing but zeroes.
type diskPart struct {
	offset, length int64
	data           []byte // nil for zeroes
}

func (p *diskCopy) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	parts, buffers := make(chan diskPart), make(chan []byte, 2)
	for range cap(buffers) {
		buffers <- make([]byte, 0, backupWrite)
	}
	g.Go(func() error {
		defer close(parts)
		return p.read(ctx, parts, buffers)
	})
	g.Go(func() error { return p.write(ctx, parts, buffers) })
	return g.Wait()
}

// largest is how much of a part is read before it is sent, at most, so that a limited
// backup comes evenly.
func (p *diskCopy) largest(part int64) int64 {
	if p.o.Speed > 0 {
		part = min(part, max(backupRead, p.o.Speed/4/backupRead*backupRead))
	}
	return part
}

// read sends all of the disk, in parts. What is limited is what is read: that loads the
// disk, whatever there is on it.
func (p *diskCopy) read(ctx context.Context, parts chan<- diskPart, buffers <-chan []byte) error {
	pace := pacer{at: time.Now()}
	var part diskPart
	send := func() error {
		if part.length == 0 {
			return nil
		}
		select {
		case parts <- part:
			part = diskPart{offset: part.offset + part.length}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	block := make([]byte, backupRead)
	for at := int64(0); at < p.d.Size; at += int64(len(block)) {
		block = block[:min(backupRead, p.d.Size-at)]
		if err := pace.take(ctx, int64(len(block)), p.o.Speed); err != nil {
			return err
		}
		if err := p.from.readAt(ctx, block, at); err != nil {
			if errors.Is(err, unix.EINVAL) { // as QEMU tells that
				err = fmt.Errorf("what the guest has overwritten could not be kept in %s, most likely for lack of room: %w", filepath.Dir(p.o.Targets[p.d.Name]), err)
			}
			return fmt.Errorf("disk %s can't be read any more as it was: %w", p.d.Name, err)
		}
		zero := bytes.Equal(block, zeroBlock[:len(block)])
		most := p.largest(backupWrite)
		if zero {
			most = p.largest(backupZeroes)
		}
		if zero != (part.data == nil) || part.length+int64(len(block)) > most {
			if err := send(); err != nil {
				return err
			}
		}
		if !zero {
			if part.data == nil {
				select {
				case part.data = <-buffers:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			part.data = append(part.data, block...)
		}
		part.length += int64(len(block))
	}
	return send()
}

// write writes the parts to the server. All is durable there when it returns nil.
func (p *diskCopy) write(ctx context.Context, parts <-chan diskPart, buffers chan<- []byte) error {
	written := int64(0)
	for part := range parts {
		if err := p.writePart(ctx, part); err != nil {
			return err
		}
		if part.data != nil {
			buffers <- part.data[:0]
		}
		p.done.Add(part.length)
		if part.data != nil || !p.canZero() {
			written += part.length
		}
		if written >= backupFlush {
			written = 0
			if err := p.ask(ctx, flushPatience, p.to.flush); err != nil {
				return err
			}
		}
	}
	return p.ask(ctx, flushPatience, p.to.flush)
}

// canZero says that the server makes zeroes of a length by itself.
func (p *diskCopy) canZero() bool { return p.to.flags&nbdCanWriteZeroes != 0 }

// zeroWrite is written to one that doesn't.
var zeroWrite [backupWrite]byte

func (p *diskCopy) writePart(ctx context.Context, part diskPart) error {
	switch {
	case part.data != nil:
		return p.ask(ctx, 1, func(ctx context.Context) error { return p.to.write(ctx, part.data, part.offset) })
	case p.canZero():
		return p.ask(ctx, 1, func(ctx context.Context) error { return p.to.zero(ctx, part.offset, part.length) })
	}
	for at := int64(0); at < part.length; at += backupWrite {
		zeroes := zeroWrite[:min(backupWrite, part.length-at)]
		if err := p.ask(ctx, 1, func(ctx context.Context) error { return p.to.write(ctx, zeroes, part.offset+at) }); err != nil {
			return err
		}
	}
	return nil
}

// ask makes one request, and gives the server up when it takes too long.
func (p *diskCopy) ask(ctx context.Context, times time.Duration, request func(context.Context) error) error {
	s := p.o.Server
	rctx, cancel := context.WithTimeoutCause(ctx, times*s.patience(), ErrServerSilent)
	defer cancel()
	err := request(rctx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, ErrServerSilent):
		return s.fault(p.d, ErrServerSilent, fmt.Sprintf("a request had no answer for %v", times*s.patience()), "")
	}
	return s.fault(p.d, err, "", "")
}
