"""The 89 features, in prompt order: what is said of the current order, then traces and histories, then the silent.

Twenty-one are verbalised: those that the process gives meaning to, and short, for prompts are read by small models too.
"""

from __future__ import annotations

from rgalign.data.simulator.background import PAYMENTS, VIEWED
from rgalign.data.simulator.evidence import ARTICLES, PAGES
from rgalign.data.simulator.history import MAX_CONTACTS
from rgalign.data.simulator.state import OTHER_ORDERS
from rgalign.data.simulator.words import REGIONS, WORDS
from rgalign.schema import (
    INTENTS,
    CategoricalFeature,
    CategoricalMember,
    Dimension,
    Feature,
    FeatureSchema,
    GroupFeature,
    NumericalFeature,
    NumericalMember,
    SequenceFeature,
)

NAME = "simulated-shop"
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

VERBALIZED = {  # categorical features: column and vocabulary have one name
    "entry_point": "Entry Point: {value}",
    "order_status": "Current Order Status: {value}",
    "promise": "Delivery: {value}",
    "last_scan": "Last Scan: {value}",
    "delivery_type": "Shipping: {value}",
    "carrier": "Carrier: {value}",
    "category": "Item: {value}",
    "shop_type": "Shop: {value}",
    "payment_method": "Payment: {value}",
    "payment_status": "Payment Status: {value}",
    "refund_status": "Refund: {value}",
    "return_reason": "Return Reason: {value}",
    "voucher_state": "Voucher: {value}",
    "app_event": "App Event: {value}",
    "device": "Device: {value}",
    "tier": "Member: {value}",
}
SILENT_CATEGORIES: dict[Dimension, tuple[str, ...]] = {
    "profile": ("region", "gender", "age_band", "language", "tenure", "city_tier", "address_kind", "card_scheme",
                "identity_checked", "wallet_linked", "push_enabled"),
    "context": ("campaign", "app_release", "network", "referrer", "weekday", "day_part", "weekend", "price_band",
                "warehouse", "insurance", "seller_band", "refund_method", "order_focus"),
}  # fmt: skip
SILENT_NUMBERS: dict[Dimension, tuple[str, ...]] = {
    "profile": ("account_age_days", "wallet_balance", "coins_balance", "saved_addresses", "lifetime_orders",
                "lifetime_spend", "followed_shops"),
    "behaviour": ("orders_30d", "orders_90d", "spend_30d", "returns_90d", "refunds_90d", "cancellations_90d",
                  "reviews_90d", "chats_7d", "chats_30d", "agent_chats_90d", "hours_since_chat", "hours_since_order",
                  "views_24h", "searches_24h", "cart_items", "cart_value", "favourites", "sessions_7d", "vouchers_held",
                  "live_minutes_7d", "last_rating"),
    "context": ("hour", "days_to_campaign", "seconds_in_app", "order_value", "item_count", "shipping_fee",
                "discount_share", "eta_overrun_hours", "hours_since_scan", "scan_count", "delivery_attempts",
                "refund_amount", "payment_attempts", "seller_response_hours"),
}  # fmt: skip
YES_NO = ("identity_checked", "wallet_linked", "push_enabled", "weekend")
PII = ("gender", "age_band")
LINEAR = ("hour", "discount_share", "last_rating", "weekday", "days_to_campaign")


def build_schema() -> FeatureSchema:
    vocabularies = {name: _numbered(names) for name, names in WORDS.items() if name != "waiting"}
    vocabularies |= {"region": dict(REGIONS), "weekday": _numbered(WEEKDAYS)}
    return FeatureSchema(
        name=NAME,
        description="An e-commerce chatbot in eight regions, simulated; docs/simulator.md says how.",
        features=(*_spoken(), *_histories(), *_silent()),
        vocabularies=vocabularies,
    )


def _numbered(names: tuple[str, ...]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names, start=1)}


def _spoken() -> list[Feature]:
    features: list[Feature] = [
        CategoricalFeature(
            name=name, dimension="profile" if name == "tier" else "context", vocabulary=name, verbalize=text
        )
        for name, text in VERBALIZED.items()
    ]
    time = NumericalFeature(
        name="hours_in_status", dimension="context", transform="log1p", minimum=0.0, unit="hours",
        verbalize="In This Status For: {value}",
    )  # fmt: skip
    features.insert(2, time)
    return features


def _histories() -> list[Feature]:
    hours = "{%s} ago"
    return [
        SequenceFeature(
            name="articles_read", dimension="behaviour", vocabulary="article", max_length=ARTICLES, item="{value}",
            verbalize="Read: {items}",
        ),
        SequenceFeature(
            name="pages_visited", dimension="behaviour", vocabulary="page", max_length=PAGES, shown=3, item="{value}",
            verbalize="Visited: {items}",
        ),
        GroupFeature(
            name="other_orders", dimension="behaviour", age="other_hours", max_length=OTHER_ORDERS, shown=1,
            members=(
                CategoricalMember(name="other_status", vocabulary="order_status"),
                CategoricalMember(name="other_category", vocabulary="category"),
                CategoricalMember(name="other_carrier", vocabulary="carrier"),
                CategoricalMember(name="other_payment", vocabulary="payment_method"),
                NumericalMember(name="other_hours", unit="hours"),
            ),
            item="{other_category} {other_status} " + hours % "other_hours", verbalize="Other Order: {items}",
        ),
        GroupFeature(
            name="contacts", dimension="behaviour", age="contact_hours", max_length=MAX_CONTACTS, shown=2,
            members=(
                CategoricalMember(name="contact_intent", vocabulary=INTENTS),
                NumericalMember(name="contact_hours", unit="hours"),
                CategoricalMember(name="contact_outcome", vocabulary="contact_outcome"),
            ),
            item="'{contact_intent}' " + hours % "contact_hours", verbalize="Clicked Intents: ({items})",
        ),
    ]  # fmt: skip


def _silent() -> list[Feature]:
    features: list[Feature] = [
        SequenceFeature(name="viewed_categories", dimension="behaviour", vocabulary="category", max_length=VIEWED),
        GroupFeature(
            name="payments", dimension="behaviour", age="payment_hours", max_length=PAYMENTS,
            members=(
                CategoricalMember(name="payment_used", vocabulary="payment_method"),
                CategoricalMember(name="payment_outcome", vocabulary="payment_outcome"),
                NumericalMember(name="payment_hours", unit="hours"),
            ),
        ),
    ]  # fmt: skip
    for dimension, names in SILENT_CATEGORIES.items():
        for name in names:
            vocabulary = "yes_no" if name in YES_NO else name
            features.append(CategoricalFeature(name=name, dimension=dimension, vocabulary=vocabulary, pii=name in PII))
    for dimension, names in SILENT_NUMBERS.items():
        for name in names:
            features.append(
                NumericalFeature(name=name, dimension=dimension, transform="identity" if name in LINEAR else "log1p")
            )
    return features
