package lab

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

func exampleTracks() ([]*Track, []Mark) {
	rng := rand.New(rand.NewPCG(1, 2))
	start := time.UnixMilli(1_700_000_000_000)
	tracks := []*Track{{Name: "http"}, {Name: "tcp"}, {Name: "writes"}, {Name: "udp"}, {Name: "download"}}
	loss := start.Add(8 * time.Second)
	for i, t := range tracks {
		for at := start; at.Before(start.Add(20 * time.Second)); at = at.Add(5 * time.Millisecond) {
			d := time.Duration(float64(time.Millisecond) * (1 + float64(i)) * (1 + rng.ExpFloat64()*2))
			if at.After(loss) && at.Before(loss.Add(90*time.Millisecond)) {
				d = loss.Add(95 * time.Millisecond).Sub(at)
			}
			t.add(at, at.Add(d), i != 3 || !at.After(loss) || !at.Before(loss.Add(90*time.Millisecond)))
		}
	}
	return tracks, []Mark{
		{At: start.Add(3 * time.Second), Text: "protected by n2"},
		{At: loss, Text: "the primary's host loses power", Loss: true},
		{At: start.Add(14 * time.Second), Text: "protected again"},
		{At: start.Add(14*time.Second + 100*time.Millisecond), Text: "the download is complete"},
	}
}

func TestPlot(t *testing.T) {
	tracks, marks := exampleTracks()
	var buf bytes.Buffer
	if err := Plot(&buf, "kill-primary-qemu", tracks, marks); err != nil {
		t.Fatal(err)
	}
	if path := os.Getenv("LAB_PLOT"); path != "" {
		if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	svg := buf.String()
	for _, want := range []string{"download", "writes", "the primary&#39;s host loses power", "14.0 s", "100 ms"} {
		if !strings.Contains(svg, want) {
			t.Errorf("the plot doesn't say %q", want)
		}
	}
	dec := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if len(svg) > 3<<20 {
		t.Errorf("%d bytes", len(svg))
	}
}

func TestPlotOfNothing(t *testing.T) {
	if err := Plot(io.Discard, "x", []*Track{{Name: "http"}}, nil); err == nil {
		t.Error("a plot without answers was drawn")
	}
}
