package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// Report is what one run measured.
type Report struct {
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"` // that it took
	QEMU    string    `json:"qemu"`
	Accel   string    `json:"accel"`
	CPUs    int       `json:"cpus"`
	Load    [2]string `json:"load"` // the machine's load average over a minute, at the beginning and at the end
	Groups  []Group   `json:"groups"`
}

// Group is a comparison of two things by several figures.
type Group struct {
	Name  string `json:"name"`
	Note  string `json:"note,omitempty"`
	Left  string `json:"left"` // what the left figures are of
	Right string `json:"right"`
	Rows  []Row  `json:"rows"`
}

// Row is one figure of both. One that was not measured is nil.
type Row struct {
	Figure string   `json:"figure"`
	Unit   string   `json:"unit"`
	Left   *float64 `json:"left"`
	Right  *float64 `json:"right"`
	Ratio  *float64 `json:"ratio"` // right by left
}

func row(figure, unit string, left, right *float64) Row {
	r := Row{Figure: figure, Unit: unit, Left: left, Right: right}
	if left != nil && right != nil && *left != 0 {
		v := *right / *left
		r.Ratio = &v
	}
	return r
}

// quantile returns the q-quantile of samples, or nil if there are none: the smallest that at least that part of them does not exceed.
func quantile(q float64, samples []float64) *float64 {
	if len(samples) == 0 {
		return nil
	}
	s := slices.Sorted(slices.Values(samples))
	i := int(math.Ceil(q*float64(len(s)))) - 1
	return &s[min(max(i, 0), len(s)-1)]
}

// rows compares two sets of samples by their quantiles.
func rows(prefix, unit string, left, right []float64, quantiles ...float64) []Row {
	var out []Row
	for _, q := range quantiles {
		name := fmt.Sprintf("p%g", q*100)
		switch q {
		case 0.5:
			name = "median"
		case 1:
			name = "longest"
		}
		out = append(out, row(strings.TrimSpace(prefix+" "+name), unit, quantile(q, left), quantile(q, right)))
	}
	return out
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// WriteJSON writes all of it.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WriteTable writes the table for people, at most 80 columns wide.
func (r *Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "QEMU %s, %s, %d CPUs, load %s before and %s after, one run of %.0f s\n", r.QEMU, r.Accel, r.CPUs,
		cmp.Or(r.Load[0], "?"), cmp.Or(r.Load[1], "?"), r.Seconds)
	for _, g := range r.Groups {
		fmt.Fprintf(&b, "\n%-41s %14s %14s %8s\n", g.Name, g.Left, g.Right, "ratio")
		for _, row := range g.Rows {
			fmt.Fprintf(&b, "  %-39s %14s %14s %8s\n", row.Figure, figure(row.Left, row.Unit), figure(row.Right, row.Unit), figure(row.Ratio, ""))
		}
		if g.Note != "" {
			fmt.Fprintf(&b, "  (%s)\n", g.Note)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// figure shows three digits that mean something.
func figure(v *float64, unit string) string {
	if v == nil {
		return "-"
	}
	digits := 0
	if a := math.Abs(*v); a != 0 && a < 100 {
		digits = min(2-int(math.Floor(math.Log10(a))), 3)
	}
	return strings.TrimSpace(fmt.Sprintf("%.*f %s", digits, *v, unit))
}
