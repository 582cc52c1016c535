package importer

// Result is an image that was imported or copied, or found.
type Result struct {
	Region string `json:"region"`
	// ImageID is of the image, which is being made or was made.
	ImageID string `json:"imageID"`
	// TaskID is the import's; "" for copies, and where it is not known any more.
	TaskID    string `json:"taskID,omitempty"`
	RequestID string `json:"requestID,omitempty"`
	// Name is what the image is to be called in the end, and As what it is called
	// until it replaces another.
	Name string `json:"name"`
	As   string `json:"as,omitempty"`
	// Identity tells the content and the parameters; see [ImageSpec.Identity].
	Identity    string `json:"identity,omitempty"`
	ClientToken string `json:"clientToken,omitempty"`
	// Reused says that the image was ready before, and Attached that it was being
	// made before.
	Reused   bool `json:"reused,omitempty"`
	Attached bool `json:"attached,omitempty"`
}

// target is what to wait for.
func (r Result) target() Target { return Target{r.Region, r.TaskID, r.ImageID} }

// Report is what [Run] and [Finish] have done. It is there whether they succeed or not.
type Report struct {
	// Object is what was imported.
	Object        string `json:"object,omitempty"`
	ObjectDeleted bool   `json:"objectDeleted,omitempty"`
	// Regions are the import's, and then those of the copies in the order asked for.
	Regions []RegionReport `json:"regions"`
	// Removed are the images that were deleted.
	Removed []Removal `json:"removed,omitempty"`
	// Deprecated are the ids of images that were deprecated.
	Deprecated []string `json:"deprecated,omitempty"`
	Seconds    float64  `json:"seconds"`
}

// Image returns the result in the region of the import.
func (r *Report) Image() Result {
	if len(r.Regions) == 0 {
		return Result{}
	}
	return r.Regions[0].Result
}

// RegionReport is what was done in a region.
type RegionReport struct {
	Result
	Status    string       `json:"status,omitempty"` // of the image, as seen last
	SizeGiB   int          `json:"sizeGiB,omitempty"`
	Snapshots []string     `json:"snapshots,omitempty"`
	Check     *CheckReport `json:"check,omitempty"`
	Shared    []string     `json:"sharedWith,omitempty"`
	Family    string       `json:"family,omitempty"`
	Replaced  string       `json:"replaced,omitempty"` // id of the image that had the name
	Seconds   float64      `json:"seconds"`            // that the image was waited for
	Error     string       `json:"error,omitempty"`
}

// CheckReport is the result of the service's image check.
type CheckReport struct {
	Status string       `json:"status"`
	Items  []ItemReport `json:"items"`
}

// ItemReport is a finding of the image check, in the service's words.
type ItemReport struct {
	Name      string `json:"name"`
	Value     string `json:"value,omitempty"`
	RiskLevel string `json:"riskLevel,omitempty"`
	RiskCode  string `json:"riskCode,omitempty"`
}

// describe takes over what is known of the image.
func (r *RegionReport) describe(im Image) {
	r.Status, r.SizeGiB, r.Snapshots = im.Status, im.SizeGiB, im.Snapshots
	if im.Check.Status == "" && len(im.Check.Items) == 0 {
		return
	}
	r.Check = &CheckReport{Status: im.Check.Status, Items: []ItemReport{}}
	for _, i := range im.Check.Items {
		r.Check.Items = append(r.Check.Items, ItemReport(i))
	}
}

// PartialError says that the image was made, but not all that was to follow. The report
// tells what was done; running it again does the rest.
type PartialError struct {
	Report *Report
	Err    error
}

func (e *PartialError) Error() string {
	return "the image was made, but not all was done: " + e.Err.Error()
}

func (e *PartialError) Unwrap() error { return e.Err }
