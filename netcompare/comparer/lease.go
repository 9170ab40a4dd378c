package comparer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the primary had sent before the last checkpoint, and what the secondary has said already, may leave at any time: both copies say it.
// But a secondary whose primary is out of reach goes on by itself, and who was left behind must be silent before that, also when no daemon
// runs that could say so. So a comparer lets out only what leaves within a term of the beginning of the last checkpoint that has ended, in
// which the secondary was one; the peer waits for longer before it speaks. The daemon, which hears the peer's heartbeats, may know better:
// it prolongs the term by a file that both have mapped. What doesn't leave waits for the next checkpoint.

const leaseFile = "compare.lease"

// Lease is the end of the time in which a comparer is sure, on the machine's monotonic clock. It may be used concurrently.
type Lease struct{ until *atomic.Int64 }

// OpenLease opens the one of a comparer's folder, and makes it if need be.
func OpenLease(dir string) (*Lease, error) {
	f, err := os.OpenFile(filepath.Join(dir, leaseFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := int(unsafe.Sizeof(atomic.Int64{}))
	info, err := f.Stat()
	if err == nil && info.Size() < int64(size) { // written, not only made longer: a hole is an error of the memory when the file system is full
		_, err = f.WriteAt(make([]byte, size), 0)
	}
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return &Lease{(*atomic.Int64)(unsafe.Pointer(&b[0]))}, nil
}

// Until makes t its end. However late this happens, that end stays.
func (l *Lease) Until(t time.Time) {
	now := monotonic() // first: who stands still in between says less, not more
	l.until.Store(now + int64(time.Until(t)))
}

// Close gives the mapping back.
func (l *Lease) Close() error {
	b := unsafe.Slice((*byte)(unsafe.Pointer(l.until)), unsafe.Sizeof(*l.until))
	return unix.Munmap(b)
}

// monotonic is the machine's clock that nobody sets, in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // Linux has it
	}
	return ts.Nano()
}

// age is how long ago QEMU said something, by the wall clock.
func (t timestamp) age() time.Duration {
	return max(0, time.Since(time.Unix(t.Seconds, t.Micros*1000)))
}

// proven notes that a checkpoint, or the beginning of COLO, has ended that began at a time.
func (l *loop) proven(began int64) { l.sureUntil = began + int64(l.cfg.Term) }

// sure says whether what may leave may leave now.
func (l *loop) sure() bool {
	if !l.inColo || l.cfg.Term == 0 {
		return true
	}
	now := monotonic()
	return now < l.sureUntil || now < l.lease.until.Load()
}

// flush sends what was let go. When it isn't sure, that stays, and a checkpoint is asked for.
func (l *loop) flush() error {
	waiting := false
	for _, o := range l.out {
		waiting = waiting || o.waiting()
	}
	if !waiting {
		l.unsure = false
		return nil
	}
	if !l.sure() {
		if !l.unsure {
			l.unsure = true
			l.lapses++
			l.eng.Ask(monotonic())
		}
		return nil
	}
	l.unsure = false
	var errs []error
	for i, o := range l.out {
		if err := o.flush(l.iov); err != nil {
			errs = append(errs, fmt.Errorf("NIC %s: the way out: %w", l.cfg.NICs[i].Name, err))
		}
	}
	return errors.Join(errs...)
}
