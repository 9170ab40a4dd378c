package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	one, small, big := 1.0, 0.0123, 123456.7
	r := &Report{
		Time: time.Unix(0, 0).UTC(), Seconds: 251.4, QEMU: "11.1.3", Accel: "tcg", CPUs: 2, Load: [2]string{"0.50", ""},
		Groups: []Group{
			{Name: "pause at a checkpoint", Left: "quickack", Right: "without", Note: "240 each",
				Rows: rows("", "ms", []float64{8, 7.51, 9, 30}, []float64{47, 48, 49.26, 90}, 0.5, 0.99)},
			{Name: "a name of a group that is just too long", Left: "left", Right: "right", Rows: []Row{
				row("not measured", "ms", nil, &one), row("odd", "MB/s", &small, &big), row("p100", "", &one, &one),
			}},
		},
	}
	var b strings.Builder
	if err := r.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/table.golden")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("table (-golden +now):\n%s", d)
	}
	for _, line := range strings.Split(b.String(), "\n") {
		if len([]rune(line)) > 80 {
			t.Errorf("%d columns: %s", len([]rune(line)), line)
		}
	}
}

// TestNotMeasured: a figure that was not measured is null in JSON, never 0.
func TestNotMeasured(t *testing.T) {
	var b strings.Builder
	if err := (&Report{Groups: []Group{{Rows: rows("", "ms", nil, []float64{1}, 0.5)}}}).WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Groups []struct{ Rows []map[string]any }
	}
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"figure": "median", "unit": "ms", "left": nil, "right": 1.0, "ratio": nil}
	if d := cmp.Diff(want, got.Groups[0].Rows[0]); d != "" {
		t.Error(d)
	}
}

func TestQuantile(t *testing.T) {
	samples := []float64{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.2: 1, 0.5: 3, 0.9: 5, 1: 5} {
		if got := *quantile(q, samples); got != want {
			t.Errorf("quantile %g is %g, want %g", q, got, want)
		}
	}
	if samples[0] != 5 {
		t.Error("the samples were sorted in place")
	}
}
