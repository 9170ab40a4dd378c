package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/guest"
)

// halvesLooks is how often halves that differ are looked at: a write that was under way when the primary was stopped is no difference.
const halvesLooks = 20

// halves compares both halves of all disks of the protected VM, byte by byte, and looks for every acknowledged write on the disk itself. The
// daemons are killed before, which nobody minds, and the primary's QEMU stands still while it is compared.
var halves = Step{Name: "compare the halves", Do: func(ctx context.Context, r *Run) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	s, err := r.Lab.Node(name).Status(ctx)
	if err != nil {
		return err
	}
	if s.PID == 0 {
		return fmt.Errorf("%s: no QEMU runs here (%s)", name, s.State)
	}
	for _, n := range NodeNames {
		if err := r.Lab.Node(n).KillDaemon(); err != nil {
			return err
		}
	}
	differ, err := r.Lab.compareHalves(ctx, s.PID, r.Lab.Spec(), NodeNames[0], NodeNames[1])
	if err != nil {
		return err
	}
	r.Result.HalvesDiffer = &differ
	if differ > 0 {
		return fmt.Errorf("the VM is protected, and %d bytes of its halves differ", differ)
	}
	lost, err := r.missing(ctx, r.Lab.Node(name).path("disks", "vda.raw"), r.Clients.Writes.Acked())
	if err != nil {
		return err
	}
	if lost > 0 {
		return fmt.Errorf("%d acknowledged writes are not on the disk", lost)
	}
	r.Tell.Say("both halves are equal, byte by byte, and have every acknowledged write")
	return nil
}}

// compareHalves returns how many bytes of both halves of a VM's disks differ and stay different. The process is that of the primary.
func (l *Lab) compareHalves(ctx context.Context, pid int, spec *colo.Spec, a, b string) (differ int64, err error) {
	for range halvesLooks {
		if differ, err = l.lookAt(pid, spec, a, b); err != nil || differ == 0 {
			return differ, err
		}
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return differ, err
		}
	}
	return differ, nil
}

// lookAt stops a process while it compares both halves of all disks, and returns how many bytes differ.
func (l *Lab) lookAt(pid int, spec *colo.Spec, a, b string) (differ int64, err error) {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)) }()
	for _, d := range spec.Disks {
		n, err := differing(l.nodes[a].path("disks", d.File), l.nodes[b].path("disks", d.File), 1)
		if err != nil {
			return 0, err
		}
		differ += n
	}
	return differ, nil
}

// differing returns how much of two files of the same size differs, in bytes, counted in whole blocks.
func differing(a, b string, block int) (differ int64, err error) {
	fa, err := os.Open(a)
	if err != nil {
		return 0, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return 0, err
	}
	defer fb.Close()
	bufA, bufB := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		na, errA := io.ReadFull(fa, bufA)
		nb, errB := io.ReadFull(fb, bufB)
		switch {
		case na != nb:
			return 0, fmt.Errorf("%s and %s are not of the same size", a, b)
		case !bytes.Equal(bufA[:na], bufB[:nb]):
			for i := 0; i < na; i += block {
				if end := min(i+block, na); !bytes.Equal(bufA[i:end], bufB[i:end]) {
					differ += int64(end - i)
				}
			}
		}
		if errors.Is(errA, io.EOF) || errors.Is(errA, io.ErrUnexpectedEOF) {
			return differ, nil
		}
		if err := errors.Join(errA, errB); err != nil {
			return 0, err
		}
	}
}

// missing counts of the first acknowledged writes those that a boot from a copy of the image would not find, or twice.
func (r *Run) missing(ctx context.Context, image string, first int) (int, error) {
	text, err := guest.ReadFile(ctx, image, r.Lab.path("look.raw"), "counter.log")
	if err != nil {
		return 0, err
	}
	r.Clients.Writes.mu.Lock()
	defer r.Clients.Writes.mu.Unlock()
	t, err := tally(r.Clients.Writes.acked[:first], text)
	return t.Lost + t.Duplicated, err
}
