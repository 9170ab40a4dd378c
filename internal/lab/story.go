package lab

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/coloctl/coloctl/internal/guest/service"
)

const (
	storyDownload = 700_000_000
	// storyLoss is how far the download is when the first host loses power.
	storyLoss = storyDownload / 4
)

// story is the demonstration: one VM, two clients that people care about, both hosts lost in turn.
func story(Params) []Step {
	d := &storyteller{}
	return []Step{
		{Name: "begin", Do: d.begin},
		boot, clients, protect, moreClients,
		{Name: "begin the download", Do: d.download},
		{Name: "wait for a part of the download", Do: d.awaitPart, Limit: 10 * time.Minute},
		settle,
		lose(primary, "the primary's host loses power", powerOff),
		powerOn, reprotected,
		{Name: "wait for the download", Do: d.awaitDownload, Limit: 20 * time.Minute},
		settle,
		lose(primary, "the other host loses power", powerOff),
		finish,
		{Name: "tell the end", Do: d.end},
	}
}

// storyteller holds what the story has beside an ordinary run.
type storyteller struct {
	ftp  *Download
	done chan struct{}
	err  error
}

func (d *storyteller) begin(_ context.Context, r *Run) error {
	r.Tell.Block(fmt.Sprintf(`Two hosts, n1 and n2, in namespaces of this machine, and a client beside them.
QEMU %s (%s), one guest with %s of memory and a disk of %s.
`, *r.Result.QEMU, *r.Result.Accel, size(r.Lab.opts.Memory), size(r.Lab.opts.Disk)))
	return nil
}

func (d *storyteller) download(ctx context.Context, r *Run) error {
	d.ftp = NewDownload(r.Lab.Dial, guestAddr(service.PortFTP), storyDownload, r.Result.Seed)
	r.extra = append(r.extra, &d.ftp.Track)
	r.Tell.Say("a client begins to download %s by FTP", size(storyDownload))
	d.done = make(chan struct{})
	life := r.Clients.ctx // it ends with the other clients
	r.Clients.wg.Go(func() {
		defer close(d.done)
		d.err = d.ftp.Run(life)
	})
	return nil
}

func (d *storyteller) awaitPart(ctx context.Context, r *Run) error {
	return d.await(ctx, r, func() bool { return d.ftp.Got() >= storyLoss })
}

// await shows the download's progress until it has ended or enough is true.
func (d *storyteller) await(ctx context.Context, r *Run, enough func() bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !enough() {
		r.Tell.Progress("download: %s of %s, %d writes acknowledged", size(d.ftp.Got()), size(d.ftp.Size), r.Clients.Writes.Acked())
		select {
		case <-d.done:
			return d.err
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the download is at %s: %w", size(d.ftp.Got()), context.Cause(ctx))
		}
	}
	return nil
}

func (d *storyteller) awaitDownload(ctx context.Context, r *Run) error {
	if err := d.await(ctx, r, func() bool { return false }); err != nil {
		return err
	}
	r.Tell.Say("the download is complete, its checksum is right")
	r.mark(false, "the download is complete")
	return nil
}

func (d *storyteller) end(_ context.Context, r *Run) error {
	var b strings.Builder
	b.WriteString("\nWhat the clients noticed\n\n")
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(w, "  longest wait, ms\tnormally (median)\tfirst loss\tsecond loss")
	for _, t := range []struct {
		name  string
		track *Track
	}{
		{"HTTP, a request each 5 ms", &r.Clients.HTTP.Track}, {"TCP, one connection", &r.Clients.TCP.Track},
		{"UDP", &r.Clients.UDP.Track}, {"writes, synced to disk", &r.Clients.Writes.Track},
	} {
		_, _ = fmt.Fprintf(w, "  %s\t", t.name) // into memory
		var p50 []float64
		var waits []string
		for _, l := range r.losses {
			if v, ok := t.track.Latency(0.5, l.at.Add(-baseline), l.at); ok {
				p50 = append(p50, *ms(v))
			}
			v, ok := t.track.Blackout(l.at, l.until)
			if !ok {
				waits = append(waits, "-")
				continue
			}
			waits = append(waits, fmt.Sprint(v.Milliseconds()))
		}
		normal := "-"
		if m := median(p50); m != nil {
			normal = fmt.Sprintf("%.1f", *m)
		}
		_, _ = fmt.Fprintln(w, normal+"\t"+strings.Join(waits, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	res := r.Result
	total, broken := r.Clients.Connections()
	fmt.Fprintf(&b, `
  writes        %s acknowledged, %s lost, %s twice
  download      %s by FTP, one connection, checksum right
  connections   %d of %d survived both losses
  resync        %s sent of %s, VM protected again after %.1f s
`, cell(ptr(r.Clients.Writes.Acked())), cell(res.WritesLost), cell(res.WritesDuplicated), size(d.ftp.Got()), total-len(broken), total,
		optionalSize(res.ResyncBytes), optionalSize(res.DiskBytes), *res.ReprotectMS/1000)
	r.Tell.Block(b.String())
	return nil
}

func optionalSize(n *int64) string {
	if n == nil {
		return "unknown"
	}
	return size(*n)
}
